"""Trainings with planted faults, their sound twins, and sound trainings of all kinds: does `depthgauge.check` tell?

python -m benchmarks.fault_zoo run --half score      # from a checkout; stores a row a training, and resumes
python -m benchmarks.fault_zoo table                 # the scores as markdown

Thresholds of the checks are set on the set half; the score half is scored, from fresh seeds. A third
set, by someone who had not read the checks, is scored apart.
"""
