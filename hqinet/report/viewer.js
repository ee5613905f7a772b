"use strict";
// The viewer of the report; plain, so that it runs from a file for years.
const DATA = JSON.parse(document.getElementById("viewer-data").textContent);
const $ = (id) => document.getElementById(id);
const VIEWS = ["low", "restored", "full", "difference"];
const state = { patient: 0, slice: 0, level: 0, width: 0, swipe: 0.5 };
const decoded = new Map();

const patient = () => DATA.patients[state.patient];
const slice = () => patient().slices[state.slice];

async function codes(png) {
  if (!decoded.has(png)) {
    const image = new Image();
    image.src = "data:image/png;base64," + png;
    await image.decode();
    const canvas = document.createElement("canvas");
    canvas.width = image.width;
    canvas.height = image.height;
    const context = canvas.getContext("2d", { willReadFrequently: true });
    context.drawImage(image, 0, 0);
    const rgba = context.getImageData(0, 0, image.width, image.height).data;
    const code = new Uint8Array(image.width * image.height);
    for (let i = 0; i < code.length; i++) code[i] = rgba[4 * i];
    decoded.set(png, { code, columns: image.width, rows: image.height });
  }
  return decoded.get(png);
}

function greys(level, width) {
  return Uint8ClampedArray.from(DATA.levels, (hu) => 255 * ((hu - (level - 0.5)) / (width - 1) + 0.5));
}

function paint(canvas, columns, rows, grey) {
  canvas.width = columns;
  canvas.height = rows;
  const context = canvas.getContext("2d");
  const image = context.createImageData(columns, rows);
  for (let i = 0; i < columns * rows; i++) {
    const value = grey(i);
    image.data[4 * i] = image.data[4 * i + 1] = image.data[4 * i + 2] = value;
    image.data[4 * i + 3] = 255;
  }
  context.putImageData(image, 0, 0);
}

let drawing = 0;
async function draw() {
  const turn = ++drawing;
  const now = slice();
  const [low, restored, full] = await Promise.all([now.low, now.restored, now.full].map(codes));
  if (turn !== drawing) return;
  const table = greys(state.level, state.width);
  const images = { low, restored, full };
  for (const name of ["low", "restored", "full"]) {
    const { code, columns, rows } = images[name];
    paint($("view-" + name), columns, rows, (i) => table[code[i]]);
  }
  const span = state.width / 4;
  const hu = DATA.levels;
  paint($("view-difference"), full.columns, full.rows,
    (i) => 255 * ((hu[restored.code[i]] - hu[full.code[i]]) / span + 0.5));
  drawSwipe(images, table);
  $("slice-name").textContent = `slice ${now.index}${now.label ? " (" + now.label + ")" : ""}`;
  $("window-name").textContent = `level ${Math.round(state.level)} HU, width ${Math.round(state.width)} HU`;
  $("shown").textContent = `${patient().patient}, ${patient().low}, ${$("slice-name").textContent}, ${$("window-name").textContent}`;
  $("low-name").textContent = patient().low;
  $("difference-name").textContent = `restored − full, ±${Math.round(span / 2)} HU`;
  document.body.dataset.drawn = `${patient().patient}/${now.index}/${Math.round(state.level)}/${Math.round(state.width)}`;
}

function drawSwipe(images, table) {
  const left = images[$("swipe-left").value], right = images[$("swipe-right").value];
  const border = Math.round(state.swipe * left.columns);
  paint($("view-swipe"), left.columns, left.rows, (i) => {
    const column = i % left.columns;
    if (column === border) return 255;
    return table[(column < border ? left : right).code[i]];
  });
}

async function drawSheet() {
  for (const [index, p] of DATA.patients.entries()) {
    const chosen = p.slices.find((s) => s.label === "median") ?? p.slices[0];
    const table = greys(p.window.level, p.window.width);
    const figure = document.createElement("figure");
    const row = document.createElement("div");
    for (const name of ["low", "restored", "full"]) {
      const { code, columns, rows } = await codes(chosen[name]);
      const canvas = document.createElement("canvas");
      paint(canvas, columns, rows, (i) => table[code[i]]);
      row.append(canvas);
    }
    const caption = document.createElement("figcaption");
    caption.textContent = `${p.patient}, ${p.low}, slice ${chosen.index}, level ${p.window.level} HU, width ${p.window.width} HU`;
    figure.append(row, caption);
    figure.addEventListener("click", () => { setPatient(index); $("patient").scrollIntoView(); });
    $("sheet").append(figure);
  }
  document.body.dataset.sheet = DATA.patients.length;
}

function setWindow({ level, width }) {
  state.level = level;
  state.width = Math.max(width, 2);
  draw();
}

function setPatient(index) {
  state.patient = index;
  state.slice = Math.max(0, patient().slices.findIndex((s) => s.label === "median"));
  $("patient").value = index;
  $("slice").max = patient().slices.length - 1;
  $("slice").value = state.slice;
  setWindow(patient().window);
}

function setSlice(index) {
  state.slice = Math.min(Math.max(index, 0), patient().slices.length - 1);
  $("slice").value = state.slice;
  draw();
}

function jump(label) {
  const found = patient().slices.findIndex((s) => s.label === label);
  if (found >= 0) setSlice(found);
}

function showSwipe(on) {
  $("side-by-side").hidden = on;
  $("swipe").hidden = !on;
  $("mode").textContent = on ? "side by side" : "swipe";
}

function dragWindow(canvas) {
  let from = null;
  canvas.addEventListener("pointerdown", (e) => {
    from = { x: e.clientX, y: e.clientY, level: state.level, width: state.width };
    canvas.setPointerCapture(e.pointerId);
  });
  canvas.addEventListener("pointermove", (e) => {
    if (!from) return;
    const scale = from.width / 300;
    setWindow({
      level: from.level + (from.y - e.clientY) * scale,
      width: from.width + (e.clientX - from.x) * scale * 2,
    });
  });
  canvas.addEventListener("pointerup", () => { from = null; });
  canvas.addEventListener("wheel", (e) => {
    e.preventDefault();
    setSlice(state.slice + Math.sign(e.deltaY));
  }, { passive: false });
}

function dragSwipe(canvas) {
  canvas.addEventListener("pointermove", (e) => {
    if (e.pointerType === "mouse" && e.buttons === 0) return;
    const box = canvas.getBoundingClientRect();
    state.swipe = Math.min(Math.max((e.clientX - box.left) / box.width, 0), 1);
    draw();
  });
}

function onKey(e) {
  if (e.ctrlKey || e.metaKey || e.altKey) return;
  if (["INPUT", "SELECT"].includes(e.target.tagName) && e.key.startsWith("Arrow")) return;
  const presets = Object.values(DATA.presets);
  if (e.key === "ArrowUp") setSlice(state.slice - 1);
  else if (e.key === "ArrowDown") setSlice(state.slice + 1);
  else if (e.key === "ArrowLeft") setPatient(Math.max(state.patient - 1, 0));
  else if (e.key === "ArrowRight") setPatient(Math.min(state.patient + 1, DATA.patients.length - 1));
  else if (e.key === "s") showSwipe($("swipe").hidden);
  else if (presets[Number(e.key) - 1]) setWindow(presets[Number(e.key) - 1]);
  else return;
  e.preventDefault();
}

DATA.patients.forEach((p, index) => $("patient").add(new Option(p.patient, index)));
$("patient").addEventListener("change", (e) => setPatient(Number(e.target.value)));
$("slice").addEventListener("input", (e) => setSlice(Number(e.target.value)));
$("mode").addEventListener("click", () => showSwipe($("swipe").hidden));
for (const id of ["swipe-left", "swipe-right"]) $(id).addEventListener("change", draw);
for (const [name, window_] of Object.entries(DATA.presets)) {
  const button = document.createElement("button");
  button.textContent = name;
  button.dataset.preset = name;
  button.addEventListener("click", () => setWindow(window_));
  $("presets").append(button);
}
for (const label of ["best", "median", "worst"]) {
  const button = document.createElement("button");
  button.textContent = label;
  button.dataset.jump = label;
  button.addEventListener("click", () => jump(label));
  $("jumps").append(button);
}
VIEWS.forEach((name) => dragWindow($("view-" + name)));
dragSwipe($("view-swipe"));
document.addEventListener("keydown", onKey);
setPatient(0);
drawSheet();
