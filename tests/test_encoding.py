import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from depthgauge.encoding import DamagedError, Failure, Summary, decode, encode
from depthgauge.study import Case, Chunk, Rows, StudyError

ONE = Case.of({"width": 8, "seed": 0})
TWO = Case.of({"width": 8, "seed": 1})
CHUNK = Chunk("demo", (ONE, TWO))


def rows():
    yield TWO.rows("loss", [1.5, math.nan, -math.inf], step=(0, 1, 2))
    yield ONE.rows("loss", 0.25)
    yield ONE.rows(
        "norm", np.array([1, 2], np.float32), layer=["a", "b"], layer_index=np.arange(2), direction="forward"
    )
    yield TWO.rows("loss", True)


def stored(tmp_path, results, chunk=CHUNK):
    encoded = encode(chunk, results, {"torch": "2.9"})
    path = tmp_path / "file.parquet"
    path.write_bytes(encoded.data)
    return path, encoded.summary


def test_rows_come_back_as_they_were_yielded(tmp_path):
    path, summary = stored(tmp_path, rows())
    table, told = decode(path.read_bytes(), "demo", CHUNK.id)
    assert summary == Summary(cases=2, rows=7)
    assert told["fingerprint"] == {"torch": "2.9"}
    assert told["cases"] == [dict(ONE.params), dict(TWO.params)]
    columns = table.to_pydict()
    assert columns["case"] == [TWO.id] * 3 + [ONE.id] * 3 + [TWO.id]
    assert columns["seed"] == [1, 1, 1, 0, 0, 0, 1]
    assert columns["width"] == [8] * 7
    assert columns["layer"] == [None] * 4 + ["a", "b", None]
    assert columns["layer_index"] == [None] * 4 + [0, 1, None]
    assert columns["direction"] == [None] * 4 + ["forward"] * 2 + [None]
    assert columns["step"] == [0, 1, 2] + [None] * 4
    assert columns["metric"] == ["loss"] * 4 + ["norm"] * 2 + ["loss"]
    assert np.array_equal(columns["value"], [1.5, math.nan, -math.inf, 0.25, 1.0, 2.0, 1.0], equal_nan=True)
    assert set(columns["status"]) == {"ok"}


def test_the_bits_of_a_number_survive(tmp_path):
    generator = np.random.default_rng(0)
    values = generator.integers(0, 2**64, 4000, dtype=np.uint64).view(np.float64)  # every kind of NaN among them
    path, _ = stored(tmp_path, [ONE.rows("x", values), TWO.rows("x", -0.0)])
    table, _ = decode(path.read_bytes(), "demo", CHUNK.id)
    back = table["value"].to_numpy()
    assert back[:-1].view(np.uint64).tolist() == values.view(np.uint64).tolist()
    assert math.copysign(1, back[-1]) == -1


def test_tensors_are_arrays_too(tmp_path):
    import torch

    path, _ = stored(tmp_path, [ONE.rows("x", torch.arange(3)), TWO.rows("x", torch.tensor(2.0))])
    assert decode(path.read_bytes(), "demo", CHUNK.id)[0]["value"].to_pylist() == [0.0, 1.0, 2.0, 2.0]


def test_a_failed_case_is_a_row_with_a_reason(tmp_path):
    failure = Failure(TWO, "timeout", "two\nlines")
    path, summary = stored(tmp_path, [ONE.rows("x", 1.0), failure])
    last = decode(path.read_bytes(), "demo", CHUNK.id)[0].slice(1).to_pylist()[0]
    assert math.isnan(last.pop("value"))
    assert last == {
        "case": TWO.id,
        "seed": 1,
        "width": 8,
        "layer": None,
        "layer_index": None,
        "direction": None,
        "step": None,
        "metric": "",
        "status": "timeout",
        "message": "two lines",
    }
    assert summary == Summary(2, 1, {"timeout": 1}, ("two lines",))
    assert not summary.final
    assert Summary(2, 1, {"error": 1}).final


def test_a_mixed_parameter_is_spelled_out_in_the_file_and_whole_in_its_metadata(tmp_path):
    cases = tuple(Case.of({"p": value}) for value in (1, "one", None, 2.5))
    chunk = Chunk("demo", cases)
    path, _ = stored(tmp_path, [case.rows("x", 0.0) for case in cases], chunk)
    table, told = decode(path.read_bytes(), "demo", chunk.id)
    assert table["p"].to_pylist() == ["1", "one", None, "2.5"]
    assert [case["p"] for case in told["cases"]] == [1, "one", None, 2.5]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: [ONE.rows("x", 1.0)], "yielded no rows for the case seed=1,width=8"),
        (lambda: [ONE.rows("x", 1.0), TWO.rows("x", [])], "yielded no rows for the case seed=1,width=8"),
        (lambda: [Case.of({"seed": 7}).rows("x", 1.0)], "rows of the case seed=7, which is not in its chunk"),
        (lambda: [ONE.rows("x", "1")], r"value of 'x' is '1' \(str\), where a number"),
        (lambda: [ONE.rows("x", 1j)], r"value of 'x' is 1j \(complex\)"),
        (lambda: [ONE.rows("x", None)], r"value of 'x' is None"),
        (lambda: [ONE.rows("x", [[1.0]])], r"value of 'x' is \[\[1.0\]\] \(list\)"),
        (lambda: [ONE.rows("x", [[1.0], [1.0, 2.0]])], "no array of numbers"),
        (lambda: [ONE.rows("", 1.0)], "metric '' is not a valid name"),
        (lambda: [ONE.rows(7, 1.0)], "metric 7 is not a valid name"),
        (lambda: [ONE.rows("x", [1.0, 2.0], step=[1])], r"step has 1 entries for 2 value\(s\)"),
        (lambda: [ONE.rows("x", 1.0, layer=["a", "b"])], r"layer has 2 entries for 1 value\(s\)"),
        (lambda: [ONE.rows("x", 1.0, step=1.5)], "step is 1.5, where an integer belongs"),
        (lambda: [ONE.rows("x", 1.0, step=True)], "step is True, where an integer belongs"),
        (lambda: [ONE.rows("x", 1.0, layer=3)], "layer is 3, where text belongs"),
        (lambda: [Rows(None, "x", 1.0)], r"rows of the case None \(NoneType\), which is not in its chunk"),
        (lambda: [ONE.rows("x", np.ma.masked_greater([1.0, 9.0], 5.0))], "value of 'x' is masked in places"),
        (lambda: [{"metric": "x"}], "yielded a dict, where Rows were expected"),
    ],
)
def test_rows_that_contradict_themselves_are_refused_by_name(wrong, message):
    with pytest.raises(StudyError, match=f"study 'demo'.*{message}"):
        encode(CHUNK, wrong(), {})


def test_a_truncated_file_is_damaged(tmp_path):
    path, _ = stored(tmp_path, rows())
    whole = path.read_bytes()
    for length in range(0, len(whole), 97):
        path.write_bytes(whole[:length])
        with pytest.raises(DamagedError):
            decode(path.read_bytes(), "demo", CHUNK.id)


def test_a_flipped_bit_is_found_wherever_it_is(tmp_path):
    path, _ = stored(tmp_path, rows())
    whole = path.read_bytes()
    draw = random.Random(0)
    for where in range(draw.randrange(11), len(whole), 11):
        spoiled = bytearray(whole)
        spoiled[where] ^= 1 << draw.randrange(8)
        path.write_bytes(spoiled)
        with pytest.raises(DamagedError):
            decode(path.read_bytes(), "demo", CHUNK.id)


def test_pages_carry_checksums_for_other_readers(tmp_path):
    chunk = Chunk("demo", (ONE,))
    noise = np.random.default_rng(0).standard_normal(1000)  # incompressible, so that a flipped bit is in a value
    path, _ = stored(tmp_path, [ONE.rows("x", noise)], chunk)
    pq.read_table(path, page_checksum_verification=True)
    spoiled = bytearray(path.read_bytes())
    column = pq.ParquetFile(path).metadata.row_group(0).column(pq.read_schema(path).get_field_index("value"))
    spoiled[column.data_page_offset + column.total_compressed_size // 2] ^= 1
    path.write_bytes(spoiled)
    with pytest.raises(OSError, match="CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_a_file_of_another_chunk_is_damaged(tmp_path):
    path, _ = stored(tmp_path, rows())
    with pytest.raises(DamagedError):
        decode(path.read_bytes(), "demo", "another")
    with pytest.raises(DamagedError):
        decode(path.read_bytes(), "other", CHUNK.id)


def test_a_file_that_depthgauge_did_not_write_is_damaged(tmp_path):
    path = tmp_path / "file.parquet"
    pq.write_table(pa.table({"x": [1]}), path)
    with pytest.raises(DamagedError):
        decode(path.read_bytes(), "demo", CHUNK.id)


def test_a_million_rows_need_no_object_each(tmp_path):
    import tracemalloc

    values = np.arange(500_000, dtype=np.float64)
    tracemalloc.start()
    path, summary = stored(tmp_path, (case.rows("x", values, step=None, layer="a") for case in CHUNK.cases))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert summary.rows == 1_000_000
    assert peak < 64 * 2**20  # 8 MiB of numbers; a dictionary a row would take hundreds
    assert decode(path.read_bytes(), "demo", CHUNK.id)[0].num_rows == 1_000_000
