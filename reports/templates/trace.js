"use strict";
// Times are in nanoseconds. An event in the file: start since the one before, duration, name, depth, shapes.
const trace = JSON.parse(document.getElementById("trace").textContent);
const canvas = document.getElementById("canvas"), pen = canvas.getContext("2d"), told = document.getElementById("told");
const place = document.getElementById("place"), find = document.getElementById("find");
const HIGH = 17, GAP = 12, TOP = 26, LABEL = 15;
let y = TOP;
for (const row of trace.rows) {
  const flat = row.events;
  row.events = [];
  for (let i = 0, at = 0; i < flat.length; i += 5) {
    at += flat[i];
    row.events.push({start: at, end: at + flat[i + 1], name: flat[i + 2], depth: flat[i + 3], shapes: flat[i + 4], row});
  }
  row.top = y + LABEL;
  y = row.top + row.deep * HIGH + GAP;
}
const height = y, whole = Math.max(trace.end, 1);
let from = 0, to = whole, held = null, over = null, wanted = null, drawn = 0, waiting = false;
const css = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
const spell = (ns) => ns >= 1e9 ? (ns / 1e9).toFixed(3) + " s" : ns >= 1e6 ? (ns / 1e6).toFixed(3) + " ms"
  : ns >= 1e3 ? (ns / 1e3).toFixed(2) + " µs" : ns.toFixed(0) + " ns";
const across = () => canvas.clientWidth;
const x = (time) => (time - from) / (to - from) * across();

function draw() {
  waiting = false;
  const width = across(), sharp = window.devicePixelRatio || 1;
  canvas.style.height = height + "px";
  if (canvas.width !== Math.round(width * sharp)) canvas.width = Math.round(width * sharp);
  if (canvas.height !== Math.round(height * sharp)) canvas.height = Math.round(height * sharp);
  pen.setTransform(sharp, 0, 0, sharp, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = "12px " + css("--sans");
  pen.textBaseline = "middle";
  ruler(width);
  drawn = 0;
  for (const row of trace.rows) {
    pen.globalAlpha = 1;
    pen.fillStyle = css("--soft");
    pen.fillText(row.name, 4, row.top - LABEL / 2);
    const last = new Float64Array(row.deep).fill(-1);
    for (const event of row.events) {
      if (event.start > to) break;
      if (event.end >= from) mark(event, row, last, width);
    }
  }
  place.value = to - from < whole ? 1000 * from / (whole - (to - from)) : 0;
  document.body.dataset.drawn = drawn;
}

function mark(event, row, last, width) {
  const left = Math.max(x(event.start), 0), right = Math.min(x(event.end), width);
  if (right - last[event.depth] < 0.5) return; // the same pixel as the event before
  last[event.depth] = right;
  const at = row.top + event.depth * HIGH, wide = Math.max(right - left, 0.7);
  const [name, group] = trace.names[event.name];
  pen.globalAlpha = wanted && !wanted.has(event.name) ? 0.15 : 1;
  pen.fillStyle = trace.colours[group];
  pen.fillRect(left, at, wide > 3 ? wide - 0.5 : wide, HIGH - 2);
  drawn++;
  if (event === held || event === over) {
    pen.strokeStyle = css("--ink");
    pen.strokeRect(left + 0.5, at + 0.5, Math.max(wide - 1, 1), HIGH - 3);
  }
  if (wide > 28) {
    pen.save();
    pen.beginPath();
    pen.rect(left + 2, at, wide - 5, HIGH - 2);
    pen.clip();
    pen.fillStyle = trace.texts[group];
    pen.fillText(name.replace(/^aten::|^autograd::engine::evaluate_function: /, ""), left + 3, at + HIGH / 2 - 0.5);
    pen.restore();
  }
}

function ruler(width) {
  const rough = (to - from) / Math.max(width / 110, 1), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((k) => k * power).find((one) => one >= rough);
  pen.lineWidth = 1;
  for (let time = Math.ceil(from / step) * step; time <= to; time += step) {
    pen.strokeStyle = css("--line");
    pen.beginPath();
    pen.moveTo(x(time), TOP - 8);
    pen.lineTo(x(time), height);
    pen.stroke();
    pen.fillStyle = css("--soft");
    if (x(time) < width - 70) pen.fillText(spell(time).replace(/\.?0+ /, " "), x(time) + 3, 9);
  }
}

function later() { if (!waiting) { waiting = true; requestAnimationFrame(draw); } }
function show(start, end) {
  const wide = Math.min(Math.max(end - start, 50), whole);
  from = Math.min(Math.max(start, 0), whole - wide);
  to = from + wide;
  later();
}
function zoom(factor, at = (from + to) / 2) { show(at - (at - from) * factor, at + (to - at) * factor); }
function move(share) { show(from + share * (to - from), to + share * (to - from)); }
function hit(pointer) {
  const box = canvas.getBoundingClientRect(), time = from + (pointer.clientX - box.left) / across() * (to - from);
  const down = pointer.clientY - box.top, slack = (to - from) / across();
  const row = trace.rows.find((one) => down >= one.top && down < one.top + one.deep * HIGH);
  const depth = row && Math.floor((down - row.top) / HIGH);
  return row && row.events.findLast((one) => one.depth === depth && one.start - slack <= time && one.end + slack >= time);
}
function say(event) {
  if (!event) return;
  const same = event.row.events.filter((one) => one.name === event.name);
  const sum = same.reduce((total, one) => total + one.end - one.start, 0);
  told.textContent = `${trace.names[event.name][0]}: ${spell(event.end - event.start)} from ${spell(event.start)} on`
    + (event.shapes ? `; shapes ${trace.shapes[event.shapes]}` : "") + `. ${event.row.name} has ${same.length} of this name, ${spell(sum)} together.`;
}

const doing = {
  in: () => zoom(0.5), out: () => zoom(2), left: () => move(-0.3), right: () => move(0.3), all: () => show(0, whole),
  step: () => { const next = trace.steps.find(([start]) => start > from + 1) || trace.steps[0]; show(...next); },
};
document.getElementById("tools").addEventListener("click", (event) => doing[event.target.dataset.do]?.());
const fingers = new Map();
canvas.addEventListener("pointerdown", (event) => { fingers.set(event.pointerId, event); canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointermove", (event) => {
  const before = fingers.get(event.pointerId);
  if (!before) { const found = hit(event) || null; if (found !== over) { over = found; say(over || held); later(); } return; }
  const other = [...fingers.values()].find((one) => one.pointerId !== event.pointerId);
  if (other) zoom(Math.max(Math.abs(before.clientX - other.clientX), 9) / Math.max(Math.abs(event.clientX - other.clientX), 9));
  else move((before.clientX - event.clientX) / across());
  fingers.set(event.pointerId, event);
});
for (const end of ["pointerup", "pointercancel"]) canvas.addEventListener(end, (event) => fingers.delete(event.pointerId));
canvas.addEventListener("click", (event) => { held = hit(event) || held; say(held); later(); });
canvas.addEventListener("dblclick", (event) => { const found = hit(event); if (found) show(found.start, found.end); });
canvas.addEventListener("wheel", (event) => {
  if (Math.abs(event.deltaX) > Math.abs(event.deltaY)) move(event.deltaX / across());
  else if (event.ctrlKey || event.metaKey) zoom(event.deltaY > 0 ? 1.25 : 0.8, from + event.offsetX / across() * (to - from));
  else return;
  event.preventDefault();
}, {passive: false});
const keys = {w: "in", s: "out", a: "left", d: "right", ArrowLeft: "left", ArrowRight: "right", "+": "in", "-": "out", Escape: "all"};
canvas.addEventListener("keydown", (event) => { if (keys[event.key] && !event.ctrlKey) { doing[keys[event.key]](); event.preventDefault(); } });
place.addEventListener("input", () => { const wide = to - from; show(place.value / 1000 * (whole - wide), place.value / 1000 * (whole - wide) + wide); });
find.addEventListener("input", () => {
  const text = find.value.trim().toLowerCase();
  wanted = text ? new Set(trace.names.flatMap(([name], i) => name.toLowerCase().includes(text) ? [i] : [])) : null;
  const found = wanted ? trace.rows.flatMap((row) => row.events.filter((one) => wanted.has(one.name))) : [];
  told.textContent = wanted ? `${found.length} events of ${wanted.size} names match.` : "";
  later();
});
for (const id of ["tools", "view", "place", "keys"]) document.getElementById(id).hidden = false;
new ResizeObserver(later).observe(canvas);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", later);
if (trace.steps.length) show(...trace.steps[trace.steps.length - 1]); else show(0, whole);
draw();
