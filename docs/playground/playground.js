// The page: painting, pictures, and the shipped models run by onnxruntime-web. The method's arithmetic is in method.js.
//
//   slices.json, playground.json, models/, runtime/   are built by scripts/make_playground.py
//
// A drawing is a list of strokes; the picture is painted from it anew, so that undo takes one away and a link holds it.

import * as method from "./method.js";

const $ = (id) => document.getElementById(id);
const PIXELS = 384;  // of the canvases; the slices have fewer
const BRUSH = ["size", "grey", "softness", "texture"];
const TUNED = ["mask_threshold", "decision_threshold", "eta"];
const PAPER = { mask_threshold: 0.5, decision_threshold: 0.5, eta: 0.5 };  // the paper's threshold on M-hat, the authors' eta
const NEAR = 2;  // pixels: a guess this close to the lesion counts
const TRIES = {  // strokes as [size, grey, softness, texture, ...points]
  "large and dark": [[7, -0.75, 0.3, 0.3, 62, 38, 66, 46]],
  faint: [[6, -0.12, 0.5, 0.2, 60, 40, 64, 46]],
  small: [[1.5, -0.75, 0.2, 0, 62, 42]],
  bright: [[6, 0.9, 0.4, 0.3, 60, 40, 64, 46]],
  "the same on both sides": [[5, -0.6, 0.4, 0.3, 64, 40, 66, 46], [5, -0.6, 0.4, 0.3, 31, 40, 29, 46]],
};

const state = {
  contrast: "t1",
  number: 3,  // of the slice; -1: a person's own
  strokes: [],
  seed: 1,  // of the noise that eta > 0 adds
  cursor: null,  // [x, y] in pixels
  slice: null,  // {x0, brain, lesion?}
  drawn: null,  // {image, covered}
  result: null,  // of heal()
  step: 0,
  guessing: null,  // {order, number, marked: [x, y] | null, shown, you, model, games}
  settings: null,  // the model's settings.json
  models: {},  // by contrast: {encoder, denoiser, decoder}
  busy: false,
};
let stored, built, runtime;  // slices.json, playground.json, {ort, provider}

// ---------------------------------------------------------------- files

const json = async (path) => {
  const answer = await fetch(path);
  if (!answer.ok) throw new Error(`${path} is missing`);
  return answer.json();
};

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));

/** Fetches files one after the other and shows how far it is. files: [[path, bytes], ..]. */
async function download(files, what) {
  const all = files.reduce((sum, [, size]) => sum + size, 0), buffers = [];
  let had = 0;
  $("progress").hidden = false;
  for (const [path] of files) {
    const answer = await fetch(path);
    if (!answer.ok) throw new Error(`${path} is missing`);
    const reader = answer.body.getReader(), parts = [];
    for (let part = await reader.read(); !part.done; part = await reader.read()) {
      parts.push(part.value);
      had += part.value.length;
      $("progress").value = had / all;
      say(`Loading ${what}: ${(had / 1e6).toFixed(1)} of ${(all / 1e6).toFixed(1)} MB`);
    }
    buffers.push(await new Blob(parts).arrayBuffer());
  }
  $("progress").hidden = true;
  return buffers;
}

const unzipped = (buffer) =>
  new Response(new Blob([buffer]).stream().pipeThrough(new DecompressionStream("gzip"))).arrayBuffer();

// ---------------------------------------------------------------- models

/** Can this browser run WebAssembly with SIMD? The smallest module that uses it. */
function hasSimd() {
  const module = [0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0, 10, 10, 1, 8, 0, 65, 0, 253, 15, 253, 98, 11];
  return typeof WebAssembly === "object" && WebAssembly.validate(new Uint8Array(module));
}

/** onnxruntime-web: on the graphics processor where there is one, else in one WebAssembly thread. */
async function startRuntime(kind) {
  const { script, binary, bytes } = built.runtime[kind];
  const [packed] = await download([[`runtime/${binary}`, bytes]], "the program that runs the models");
  const ort = await import(new URL(`runtime/${script}`, location.href));
  ort.env.wasm.wasmBinary = await unzipped(packed);
  ort.env.wasm.numThreads = 1;
  return { ort, provider: kind };
}

async function hasGpu() {
  const adapter = await navigator.gpu?.requestAdapter().catch(() => null);
  return Boolean(adapter) && !(adapter.info?.isFallbackAdapter ?? adapter.isFallbackAdapter);
}

const loading = {};  // by contrast: the promise of its models
const models = (contrast) => (loading[contrast] ??= loadModels(contrast).catch((error) => {
  delete loading[contrast];
  throw error;
}));

async function loadModels(contrast) {
  runtime ??= await startRuntime((await hasGpu()) ? "webgpu" : "wasm");
  const sizes = Object.entries(built.contrasts[contrast]);
  const buffers = await download(sizes.map(([name, size]) => [`models/${contrast}/${name}`, size]), `the models for ${contrast}`);
  const open = async () => {
    const found = {};
    for (const [i, [name]] of sizes.entries()) {
      const options = { executionProviders: [runtime.provider] };
      found[name.replace(".onnx", "")] = await runtime.ort.InferenceSession.create(buffers[i].slice(0), options);
    }
    await run(found.denoiser, { z_t: new Float32Array(size(state.settings.latent)), t: 9 });  // the first run is slower
    return found;
  };
  try {
    state.models[contrast] = await open();
  } catch (error) {
    if (runtime.provider === "wasm") throw error;
    runtime.provider = "wasm";  // the same program does without the graphics processor
    state.models[contrast] = await open();
  }
  $("machine").textContent = `Running on ${runtime.provider === "webgpu" ? "the graphics processor (WebGPU)" : "the processor, one thread"}.`;
  say("Ready: paint, then press Heal.");
}

const size = (shape) => shape.reduce((a, b) => a * b, 1);

/** One run of a model. inputs: values by name; t is a number. */
async function run(session, inputs) {
  const { Tensor } = runtime.ort, feeds = {};
  for (const [name, values] of Object.entries(inputs)) {
    const shape = name === "x0" ? state.settings.image : state.settings.latent;
    feeds[name] = name === "t" ? new Tensor("int64", BigInt64Array.of(BigInt(values)), [1]) : new Tensor("float32", values, shape);
  }
  const found = await session.run(feeds), out = {};
  for (const [name, tensor] of Object.entries(found)) out[name] = tensor.data;
  return out;
}

// ---------------------------------------------------------------- healing

/** Heals what is painted. stepNoise: in place of the page's own, for comparisons with Python. */
async function heal({ stepNoise } = {}) {
  if (state.busy || !built.runtime.wasm) return null;
  state.busy = true;
  $("heal").disabled = true;
  try {
    await models(state.contrast);
    const began = performance.now();
    const { encoder, denoiser, decoder } = state.models[state.contrast];
    const settings = tuned(), { image } = state.drawn, { brain } = state.slice;
    say("Healing.");
    const z0 = (await run(encoder, { x0: image })).z0;
    const draw = method.uniform(state.seed);
    const result = await method.selectiveReverse((z_t, t) => run(denoiser, { z_t, t }), z0, settings, {
      eta: settings.eta,
      threshold: settings.mask_threshold,
      stepNoise: stepNoise ?? (() => method.normal(z0.length, draw)),
      onStep: () => new Promise((resolve) => setTimeout(resolve)),  // the page stays alive
    });
    const decoded = async (z) => {
      const { x0_hat } = await run(decoder, { z });
      return x0_hat.map((x, i) => (brain[i] ? Math.min(Math.max(x, -1), 1) : -1));
    };
    result.frames = [await decoded(z0)];
    result.frames[result.trajectory.length - 1] = await decoded(result.latent);
    const healed = result.frames.at(-1), reference = settings.reference === "input" ? image : result.frames[0];
    const certainty = method.largest(result.probabilities);
    result.map = method.anomalyMap(healed, reference, image, brain, certainty, settings);
    result.milliseconds = performance.now() - began;
    state.result = result;
    $("play").disabled = $("step").disabled = false;
    $("step").max = state.step = result.trajectory.length - 1;
    result.rest = (async () => {  // the film's other frames, while the result is already there
      for (let k = 1; k < healed.length && k < result.trajectory.length - 1; k++) {
        if (state.result !== result) return;
        result.frames[k] = await decoded(result.trajectory[k]);
      }
    })();
    show();
    say(sentence());
    return result;
  } catch (error) {
    say(`It could not be healed: ${error.message}. Are you offline, or is the memory full?`);
    return null;
  } finally {
    state.busy = false;
    $("heal").disabled = false;
  }
}

/** The model's settings with what the sliders say. */
function tuned() {
  return { ...state.settings, ...Object.fromEntries(TUNED.map((name) => [name, Number($(name).value)])) };
}

const found = () => state.result.map.map((a) => (a > Number($("decision_threshold").value) ? 1 : 0));
const truth = () => state.slice.lesion ?? Uint8Array.from(state.drawn.covered, (c) => (c >= 0.5 ? 1 : 0));

function sentence() {
  const cells = state.result.replaced.reduce((any, step) => any.map((x, i) => x | step[i]));
  const there = truth().some((m) => m), overlap = method.dice(found(), truth());
  const agree = there ? ` Dice ${overlap.toFixed(2)}.` : " Nothing was painted: all that is found is a false alarm.";
  return `Healed in ${(state.result.milliseconds / 1000).toFixed(1)} s: ${cells.reduce((a, b) => a + b, 0)} of ${cells.length} cells replaced.${agree}`;
}

let playing = 0;
async function play() {
  const result = state.result, mine = ++playing;
  if (!result) return;
  await result.rest;
  for (let k = 0; k < result.trajectory.length && mine === playing && state.result === result; k++) {
    state.step = k;
    show();
    await new Promise((resolve) => setTimeout(resolve, 220));
  }
}

// ---------------------------------------------------------------- pictures

const small = document.createElement("canvas");

/** A slice's values, turned to colours, onto a canvas. colour: (i) -> [r, g, b]. */
function draw(canvas, colour) {
  const side = Math.sqrt(state.slice.x0.length), picture = new ImageData(side, side);
  for (let i = 0; i < side * side; i++) picture.data.set([...colour(i), 255], 4 * i);
  small.width = small.height = side;
  small.getContext("2d").putImageData(picture, 0, 0);
  const pen = canvas.getContext("2d");
  pen.imageSmoothingEnabled = true;
  pen.drawImage(small, 0, 0, canvas.width, canvas.height);
  return pen;
}

const grey = (values, dim = 1) => (i) => Array(3).fill((values[i] + 1) * 127.5 * dim);

/** Black, red, yellow, white. */
const hot = (a) => [3 * a, 3 * a - 1, 3 * a - 2].map((x) => 255 * Math.min(Math.max(x, 0), 1));

/** The outline of a square mask. */
function outline(pen, mask, colour, width = 2) {
  const side = Math.sqrt(mask.length), cell = PIXELS / side;
  pen.beginPath();
  for (let y = 0; y < side; y++) {
    for (let x = 0; x < side; x++) {
      if (!mask[y * side + x]) continue;
      const edges = [[0, -1, 0, 0, 1, 0], [0, 1, 0, 1, 1, 1], [-1, 0, 0, 0, 0, 1], [1, 0, 1, 0, 1, 1]];
      for (const [dx, dy, x1, y1, x2, y2] of edges) {
        const inside = x + dx >= 0 && x + dx < side && y + dy >= 0 && y + dy < side;
        if (inside && mask[(y + dy) * side + x + dx]) continue;
        pen.moveTo((x + x1) * cell, (y + y1) * cell);
        pen.lineTo((x + x2) * cell, (y + y2) * cell);
      }
    }
  }
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.stroke();
}

const BLUE = "#5ab4ff", ORANGE = "#ff9a3c";

function show() {
  const { result, drawn, step, guessing } = state, image = drawn.image;
  const hidden = guessing && !guessing.shown;
  const pens = [draw($("scan"), grey(image))];
  if (!result || hidden) {
    for (const id of ["healed", "map", "mask"]) pens.push(draw($(id), grey(image, 0.25)));
    $("step-name").textContent = hidden ? "guess first" : "not yet";
    $("numbers").textContent = "";
    if (!hidden) outline(pens[3], truth(), BLUE);
  } else {
    $("step").value = step;
    $("step-name").textContent = `step ${step} of ${result.trajectory.length - 1}`;
    pens.push(draw($("healed"), grey(result.frames[step] ?? result.frames[0])));
    if (step > 0) outline(pens[1], result.replaced[step - 1], ORANGE, 1.5);
    pens.push(draw($("map"), (i) => hot(result.map[i])));
    const mask = found(), there = truth();
    const orange = (i) => (mask[i] ? [255, 154, 60] : grey(image, 0.5)(i));
    pens.push(draw($("mask"), orange));
    outline(pens[3], there, BLUE);
    const ml = (m) => method.millilitres(m, state.settings).toFixed(2), overlap = method.dice(mask, there);
    const name = guessing ? "hidden" : "painted";
    $("numbers").textContent = `Dice ${overlap === null ? "–" : overlap.toFixed(2)} · found ${ml(mask)} mL, ${name} ${ml(there)} mL`;
  }
  if (guessing?.marked) ring(pens[0], guessing.marked, ORANGE);
  if (guessing?.shown) outline(pens[0], truth(), BLUE);
  if (state.cursor) pens.forEach((pen) => cross(pen, state.cursor));
  describeCursor(hidden);
  for (const name of TUNED) $(name).nextElementSibling.value = Number($(name).value).toFixed(2);
}

function cross(pen, [x, y]) {
  const cell = PIXELS / Math.sqrt(state.slice.x0.length), [cx, cy] = [(x + 0.5) * cell, (y + 0.5) * cell];
  pen.strokeStyle = "rgba(120, 255, 160, 0.8)";
  pen.lineWidth = 1;
  pen.beginPath();
  pen.arc(cx, cy, state.guessing ? 4 : Math.max(Number($("size").value) * cell, 3), 0, 7);
  pen.moveTo(cx - 12, cy), pen.lineTo(cx + 12, cy), pen.moveTo(cx, cy - 12), pen.lineTo(cx, cy + 12);
  pen.stroke();
}

function ring(pen, [x, y], colour) {
  const cell = PIXELS / Math.sqrt(state.slice.x0.length);
  pen.strokeStyle = colour;
  pen.lineWidth = 4;
  pen.beginPath();
  pen.arc((x + 0.5) * cell, (y + 0.5) * cell, 12, 0, 7);
  pen.stroke();
}

function describeCursor(hidden) {
  if (!state.cursor) return;
  const side = Math.sqrt(state.slice.x0.length), i = Math.round(state.cursor[1]) * side + Math.round(state.cursor[0]);
  const parts = [`scan ${state.drawn.image[i]?.toFixed(2)}`];
  if (state.result && !hidden) parts.push(`healed ${state.result.frames.at(-1)[i]?.toFixed(2)}`, `map ${state.result.map[i]?.toFixed(2)}`);
  $("cursor").textContent = `At the cursor: ${parts.join(", ")}`;
}

function say(text) {
  $("status").textContent = text;
}

// ---------------------------------------------------------------- slices

function decoded(entry) {
  const bytes = bytesOf(entry.values), brain = Uint8Array.from(bytes, (b) => (b ? 1 : 0));
  const slice = { x0: Float32Array.from(bytes, (b) => (b ? b / 127.5 - 1 : -1)), brain };
  return entry.lesion ? { ...slice, lesion: bytesOf(entry.lesion) } : slice;
}

/** Another slice under the brush. */
function take(slice) {
  state.slice = slice;
  repaint();
}

function repaint() {
  state.drawn = method.paint(state.slice.x0, state.slice.brain, state.strokes, Math.sqrt(state.slice.x0.length));
  state.result = null;
  playing++;
  $("play").disabled = $("step").disabled = true;
  show();
  if (state.number >= 0 && !state.guessing) history.replaceState(null, "", link());
}

async function choose(contrast, number, strokes = []) {
  if (contrast !== state.contrast || !state.settings) {
    state.settings = await json(`models/${contrast}/settings.json`);
    state.contrast = contrast;
    modelValues();
    $("contrast").value = contrast;
    $("card").href = `models/${contrast}/README.md`;
  }
  Object.assign(state, { number, strokes });
  $("level-row").hidden = true;
  thumbnails();
  take(decoded(stored[contrast].healthy[number]));
}

function thumbnails() {
  $("slices").replaceChildren(...stored[state.contrast].healthy.map((entry, k) => {
    const button = document.createElement("button"), canvas = document.createElement("canvas");
    canvas.width = canvas.height = 96;
    state.slice = decoded(entry);
    draw(canvas, grey(state.slice.x0));
    button.append(canvas);
    button.setAttribute("role", "radio");
    button.setAttribute("aria-checked", k === state.number);
    button.setAttribute("aria-label", `slice ${k + 1} of 8, at ${entry.z} mm`);
    button.onclick = () => {
      leaveGuessing();
      choose(state.contrast, k);
    };
    return button;
  }));
}

function setValues(values) {
  for (const name of TUNED) $(name).value = values[name] ?? 0.5;
}
const modelValues = () => setValues(state.settings);

// ---------------------------------------------------------------- a link to a drawing

/** The page's address with the drawing in it: base64 of a JSON list. */
function link() {
  const strokes = state.strokes.map((s) => [Number(s.erase), ...BRUSH.map((b) => s[b]), ...s.points]);
  const content = [state.contrast, state.number, state.seed, TUNED.map((name) => Number($(name).value)), strokes];
  return `#${btoa(JSON.stringify(content)).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "")}`;
}

async function follow(hash) {
  try {
    const text = atob(hash.slice(1).replaceAll("-", "+").replaceAll("_", "/"));
    const [contrast, number, seed, values, strokes] = JSON.parse(text);
    if (!stored[contrast]?.healthy[number]) throw new Error("no such slice");
    const numbers = [seed, ...values, ...strokes.flat()];
    if (values.length !== TUNED.length || !numbers.every(Number.isFinite)) throw new Error("no such drawing");
    state.seed = seed;
    await choose(contrast, number);
    setValues(Object.fromEntries(TUNED.map((name, i) => [name, values[i]])));
    state.strokes = strokes.map(([erase, size, grey, softness, texture, ...points]) => ({ erase: Boolean(erase), size, grey, softness, texture, points }));
    repaint();
  } catch {
    await choose("t1", 3);
    return "This link holds no drawing; here is an empty slice.";
  }
  return null;
}

// ---------------------------------------------------------------- guess first

async function startGuessing() {
  const old = state.guessing ?? { you: 0, model: 0, games: 0, order: [] };
  const draw = method.uniform(Date.now());
  const all = stored[state.contrast].patients.map((_, k) => [draw(), k]).sort((a, b) => a[0] - b[0]);
  const order = old.order.length ? old.order : all.map(([, k]) => k);
  state.guessing = { ...old, order: order.slice(1), number: order[0], marked: null, shown: false };
  $("guess").setAttribute("aria-pressed", "true");
  $("guess").textContent = "Next";
  Object.assign(state, { strokes: [], number: -1 });
  take(decoded(stored[state.contrast].patients[order[0]]));
  say("A lesion is hidden in this slice. Tap where you see it; then the model gets its turn.");
}

function leaveGuessing() {
  state.guessing = null;
  $("guess").setAttribute("aria-pressed", "false");
  $("guess").textContent = "Guess first";
}

async function guess(x, y) {
  const game = state.guessing;
  if (game.shown || state.busy) return;
  game.marked = [x, y];
  show();
  const result = await heal();
  if (!result) return;
  const peak = result.map.indexOf(Math.max(...result.map)), side = Math.sqrt(result.map.length);
  const [you, model] = [near(x, y), near(peak % side, Math.floor(peak / side))];
  game.shown = true;
  game.games++;
  game.you += you;
  game.model += model;
  show();
  const kind = { stroke: "stroke", glioma: "tumour", wml: "group of white-matter lesions" }[stored[state.contrast].patients[game.number].kind];
  const who = you && model ? "You and the model both found it" : you ? "You found it, the model did not" : model ? "The model found it, you did not" : "Neither found it";
  say(`${who}: a ${kind}. So far: you ${game.you}, the model ${game.model}, of ${game.games}.`);
}

/** Is a point in the lesion, or next to it? */
function near(x, y) {
  const lesion = state.slice.lesion, side = Math.sqrt(lesion.length);
  return lesion.some((m, i) => m && Math.hypot((i % side) - x, Math.floor(i / side) - y) <= NEAR);
}

// ---------------------------------------------------------------- a person's own slice

let volume = null;
async function own(file) {
  leaveGuessing();
  try {
    const [grid, name] = [state.settings.grid, file.name.toLowerCase()];
    if (name.endsWith(".png")) {
      volume = null;
      takeOwn(await greyPicture(file, grid.size));
    } else if (name.endsWith(".nii") || name.endsWith(".nii.gz")) {
      const buffer = await file.arrayBuffer();
      volume = method.readNifti(name.endsWith(".gz") ? await unzipped(buffer) : buffer);
      [$("level").min, $("level").max] = grid.z_range;
      $("level").value = 18;
      takeOwn(method.cut(volume, 18, state.settings));
    } else {
      throw new Error("give a PNG picture or a NIfTI file (.nii, .nii.gz)");
    }
    $("level-row").hidden = !volume;
    say("Your own slice stays on this device. The model expects a brain alone, without skull, in MNI152 space and in this contrast; anything else it takes for a lesion. What it finds is no diagnosis.");
  } catch (error) {
    say(`${file.name}: ${error.message}.`);
  }
}

function takeOwn(values) {
  const slice = method.normalised(values);
  Object.assign(state, { number: -1, strokes: [] });
  for (const button of $("slices").children) button.setAttribute("aria-checked", false);
  take(slice);
}

/** A picture's grey values, fitted into a square. */
async function greyPicture(file, side) {
  const picture = await createImageBitmap(file).catch(() => { throw new Error("this picture cannot be read"); });
  const scale = side / Math.max(picture.width, picture.height), [w, h] = [picture.width * scale, picture.height * scale];
  const canvas = new OffscreenCanvas(side, side), pen = canvas.getContext("2d");
  pen.fillRect(0, 0, side, side);
  pen.imageSmoothingQuality = "high";
  pen.drawImage(picture, (side - w) / 2, (side - h) / 2, w, h);
  const { data } = pen.getImageData(0, 0, side, side);
  return Float32Array.from({ length: side * side }, (_, i) => {
    const value = (data[4 * i] + data[4 * i + 1] + data[4 * i + 2]) / 3;
    return value > 8 ? value : 0;  // a compressed picture's black is not quite black
  });
}

// ---------------------------------------------------------------- hands

const at = (event) => {
  const box = event.target.getBoundingClientRect(), side = Math.sqrt(state.slice.x0.length);
  return [event.clientX - box.left, event.clientY - box.top].map((v, axis) => {
    const pixel = (v / (axis ? box.height : box.width)) * side - 0.5;
    return Math.round(Math.min(Math.max(pixel, 0), side - 1) * 2) / 2;
  });
};

function newStroke(x, y) {
  const brush = Object.fromEntries(BRUSH.map((name) => [name, Number($(name).value)]));
  state.strokes.push({ erase: $("erase").getAttribute("aria-pressed") === "true", ...brush, points: [x, y] });
  repaint();
}

function listen() {
  let painting = false;
  const scan = $("scan");
  scan.addEventListener("pointerdown", (event) => {
    if (!event.isPrimary || event.button) return;
    state.cursor = at(event);
    if (state.guessing) return void guess(...state.cursor);
    if (state.busy) return;
    painting = true;
    try { scan.setPointerCapture(event.pointerId); } catch { /* a pointer that is gone already */ }
    newStroke(...state.cursor);
  });
  scan.addEventListener("pointermove", (event) => {
    state.cursor = at(event);
    const points = state.strokes.at(-1)?.points;
    if (painting && Math.hypot(points.at(-2) - state.cursor[0], points.at(-1) - state.cursor[1]) >= 1) {
      points.push(...state.cursor);
      repaint();
    } else {
      show();
    }
  });
  for (const name of ["pointerup", "pointercancel"]) scan.addEventListener(name, () => { painting = false; });
  for (const id of ["healed", "map", "mask"]) {
    $(id).addEventListener("pointermove", (event) => { state.cursor = at(event); show(); });
  }

  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT/.test(event.target.tagName)) return;
    const moves = { ArrowLeft: [-2, 0], ArrowRight: [2, 0], ArrowUp: [0, -2], ArrowDown: [0, 2] };
    if (event.target === scan && (moves[event.key] || event.key === " ")) {
      event.preventDefault();
      const [x, y] = state.cursor ?? [47, 47], side = Math.sqrt(state.slice.x0.length);
      const clip = (v) => Math.min(Math.max(v, 0), side - 1);
      if (moves[event.key]) {
        state.cursor = [clip(x + moves[event.key][0]), clip(y + moves[event.key][1])];
        show();
        say(`Brush at column ${state.cursor[0]}, row ${state.cursor[1]}.`);
      } else if (state.guessing) {
        guess(x, y);
      } else if (!state.busy) {
        newStroke(x, y);
        say("Painted.");
      }
    }
    if (event.key === "h") $("heal").click();
    if (event.key === "z") $("undo").click();
  });

  $("heal").onclick = async () => {
    if (state.guessing && !state.guessing.shown) return void say("Tap first where you see the lesion.");
    if (await heal()) play();
  };
  $("play").onclick = play;
  $("step").oninput = () => { playing++; state.step = Number($("step").value); state.result?.rest.then(show); };
  $("undo").onclick = () => { if (!state.busy) { state.strokes.pop(); repaint(); } };
  $("reset").onclick = () => { if (!state.busy) { state.strokes = []; repaint(); say("The slice is as it was."); } };
  $("erase").onclick = () => $("erase").setAttribute("aria-pressed", $("erase").getAttribute("aria-pressed") !== "true");
  $("contrast").onchange = () => { leaveGuessing(); choose($("contrast").value, Math.max(state.number, 0), state.strokes); };
  $("guess").onclick = () => { if (!state.busy) startGuessing(); };
  $("file").onchange = () => { if ($("file").files[0]) own($("file").files[0]); $("file").value = ""; };
  $("level").oninput = () => takeOwn(method.cut(volume, Number($("level").value), state.settings));
  $("decision_threshold").oninput = () => { show(); remember(); };
  const again = () => { remember(); return state.result ? heal() : show(); };  // the cells are chosen anew
  for (const name of ["mask_threshold", "eta"]) {
    $(name).oninput = show;
    $(name).onchange = again;
  }
  $("model-values").onclick = () => { modelValues(); again(); };
  $("paper-values").onclick = () => { setValues(PAPER); again(); };
  $("link").onclick = async () => {
    if (state.number < 0) return say("A link holds drawings on the page's own slices only.");
    history.replaceState(null, "", link());
    try {
      await navigator.clipboard.writeText(location.href);
      say("The link is copied: whoever opens it sees this drawing.");
    } catch {
      say("Copy the address of this page: it holds the drawing.");
    }
  };

  for (const [name, strokes] of Object.entries(TRIES)) {
    const button = document.createElement("button");
    button.textContent = name;
    button.onclick = () => {
      if (state.busy) return;
      leaveGuessing();
      state.strokes = strokes.map(([size, grey, softness, texture, ...points]) => ({ erase: false, size, grey, softness, texture, points }));
      if (state.number < 0) return void choose(state.contrast, 3, state.strokes).then(() => $("heal").click());
      repaint();
      $("heal").click();
    };
    $("tries").append(button);
  }

  addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
  addEventListener("dragleave", () => document.body.classList.remove("dropping"));
  addEventListener("drop", (event) => {
    event.preventDefault();
    document.body.classList.remove("dropping");
    if (event.dataTransfer.files[0]) own(event.dataTransfer.files[0]);
  });
}

function remember() {
  if (state.number >= 0 && !state.guessing) history.replaceState(null, "", link());
}

function film(reason) {
  document.querySelector("main").hidden = true;
  $("fallback").hidden = false;
  $("reason").textContent = `${reason} Here is a film of what it would show: a simulated stroke, and its healing.`;
}

// ---------------------------------------------------------------- begin

async function begin() {
  try {
    [stored, built] = await Promise.all([json("slices.json"), json("playground.json")]);
  } catch {
    return film("This copy of the page was not built: its slices and models are made by `make site`.");
  }
  if (!hasSimd()) return film("This browser cannot run the models: it lacks WebAssembly with SIMD, which browsers have since 2023.");
  if (!built.runtime.wasm) return film("This copy of the page was built without the program that runs the models.");
  for (const contrast of Object.keys(stored)) $("contrast").add(new Option(contrast.toUpperCase(), contrast));
  listen();
  const warning = location.hash.length > 1 ? await follow(location.hash) : await choose("t1", 3);
  // within another page the models, about 12 MB, come when somebody takes the brush; else at once
  const load = () => models(state.contrast).then(() => warning && say(warning), (error) => say(`The models could not be loaded: ${error.message}.`));
  if (window === window.top) return load();
  say("Paint: the models, about 12 MB, are loaded when you begin.");
  for (const name of ["pointerdown", "keydown"]) addEventListener(name, load, { once: true });
}

window.playground = { state, heal, play, show, follow, method };  // for the console, and for the tests
window.playground.ready = begin();
