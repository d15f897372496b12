// The front end of paint.Canvas, an ES module as anywidget loads it: a slice to paint on, buttons, what came back.
// Everything that goes to Python and back is text (base64), which every widget manager passes on unchanged.

const VIEW = 4; // screen pixels along a pixel of the slice
const UNDO = 50; // strokes that can be taken back

const bytesOf = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
const textOf = (bytes) => btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(""));
const level = (byte) => byte / 127.5 - 1; // 0 ... 255 -> -1 ... 1
const byteOf = (value) => Math.round((Math.min(1, Math.max(-1, value)) + 1) * 127.5);

function element(tag, parent, properties = {}, style = "") {
  const node = Object.assign(document.createElement(tag), properties);
  node.style.cssText = style;
  parent.append(node);
  return node;
}

function slider(parent, name, text, low, high, step, value) {
  const row = element("label", parent, {}, "display:flex;gap:8px;align-items:center;margin:2px 0");
  element("span", row, { textContent: text }, "width:11em;white-space:nowrap");
  const input = element("input", row, { type: "range", min: low, max: high, step, value, className: name, title: text }, "flex:1");
  const shown = element("output", row, { textContent: value }, "width:3em;text-align:right");
  input.addEventListener("input", () => (shown.textContent = input.value));
  return input;
}

function render({ model, el }) {
  const [height, width] = model.get("size");
  const scan = bytesOf(model.get("scan")), brain = bytesOf(model.get("brain")), grain = bytesOf(model.get("grain"));
  let painted = scan.slice(), marks = new Uint8Array(scan.length); // what is seen, and where it was painted
  let score = null, waiting = false, again = false;
  const past = []; // [painted, marks] before each stroke

  const root = element("div", el, {}, "display:flex;flex-wrap:wrap;gap:16px;align-items:flex-start;font:14px sans-serif");
  const left = element("div", root, {}, `width:${VIEW * width}px;max-width:100%`);
  const canvas = element("canvas", left, { width: VIEW * width, height: VIEW * height, className: "paint-canvas" },
    "touch-action:none;cursor:crosshair;width:100%;background:#000");
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", "A brain slice to paint a lesion on");
  const radius = slider(left, "paint-radius", "brush radius, pixels", 1, 16, 0.5, 6);
  const grey = slider(left, "paint-grey", "grey, -1 to 1", -1, 1, 0.05, -0.8);
  const softness = slider(left, "paint-softness", "softness of the edge", 0, 1, 0.05, 0.3);
  const texture = slider(left, "paint-texture", "texture", 0, 1, 0.05, 0);
  const buttons = element("div", left, {}, "display:flex;gap:8px;align-items:center;margin-top:6px;flex-wrap:wrap");
  const undo = element("button", buttons, { textContent: "Undo", className: "paint-undo" });
  const reset = element("button", buttons, { textContent: "Reset", className: "paint-reset" });
  const heal = element("button", buttons, { textContent: "Heal", className: "paint-heal" }, "font-weight:bold");
  const every = element("label", buttons);
  const always = element("input", every, { type: "checkbox", className: "paint-always" });
  every.append(" after every stroke");

  const right = element("div", root, {}, "flex:1;min-width:280px");
  const picture = element("img", right, { className: "paint-picture", alt: "Nothing healed yet" },
    "max-width:100%;height:auto;display:none");
  const threshold = slider(right, "paint-threshold", "found from a score of", 0.01, 1, 0.01, model.get("threshold"));
  const words = element("p", right, { className: "paint-words" }, "margin:6px 0");
  words.setAttribute("aria-live", "polite");

  const small = document.createElement("canvas");
  small.width = width;
  small.height = height;

  function draw() {
    const data = new ImageData(width, height);
    painted.forEach((byte, i) => data.data.set([byte, byte, byte, 255], 4 * i));
    small.getContext("2d").putImageData(data, 0, 0);
    const view = canvas.getContext("2d");
    view.drawImage(small, 0, 0, canvas.width, canvas.height);
    view.strokeStyle = "#00E5FF"; // the border of what counts as painted
    view.beginPath();
    for (let i = 0; i < marks.length; i++) {
      const x = i % width, y = (i - x) / width;
      if (x && marks[i] !== marks[i - 1]) { view.moveTo(VIEW * x, VIEW * y); view.lineTo(VIEW * x, VIEW * (y + 1)); }
      if (y && marks[i] !== marks[i - width]) { view.moveTo(VIEW * x, VIEW * y); view.lineTo(VIEW * (x + 1), VIEW * y); }
    }
    view.stroke();
    tell();
  }

  function tell() {
    const count = marks.reduce((sum, m) => sum + m, 0);
    let text = `painted: ${count} pixels`;
    if (waiting) text = "healing ...";
    else if (score) {
      let both = 0, found = 0;
      const limit = 255 * threshold.value;
      score.forEach((s, i) => { if (s >= limit) { found += 1; both += marks[i]; } });
      const dice = count + found ? ((2 * both) / (count + found)).toFixed(2) : "-";
      text = `Dice ${dice}: painted ${count} pixels, found ${found}, of them ${found - both} false alarms`;
      text += ` (${model.get("answer").seconds.toFixed(1)} s)`;
    } else text += "; press Heal";
    words.textContent = text;
  }

  // One stroke lies over what was there before it: its strongest cover counts, so that going over a place twice, or
  // slowly, does not make a soft edge hard.
  let before = null, cover = null, last = null;

  function dab(x, y) {
    const r = Number(radius.value), inner = r * (1 - softness.value);
    const tone = Number(grey.value), rough = 0.3 * texture.value;
    for (let j = Math.max(0, Math.floor(y - r)); j <= Math.min(height - 1, Math.ceil(y + r)); j++)
      for (let k = Math.max(0, Math.floor(x - r)); k <= Math.min(width - 1, Math.ceil(x + r)); k++) {
        const i = j * width + k, d = Math.hypot(k - x, j - y);
        const u = d <= inner ? 1 : Math.max(0, (r - d) / (r - inner));
        const w = u * u * (3 - 2 * u); // 1 inside, falling smoothly to 0 at the radius
        if (!brain[i] || w <= cover[i]) continue;
        cover[i] = w;
        painted[i] = byteOf((1 - w) * level(before[i]) + w * (tone + (rough * (grain[i] - 128)) / 50));
        if (w >= 0.5) marks[i] = 1;
      }
  }

  function place(event) {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width - 0.5, ((event.clientY - box.top) / box.height) * height - 0.5];
  }

  canvas.addEventListener("pointerdown", (event) => {
    if (event.button) return;
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    past.push([painted.slice(), marks.slice()]);
    if (past.length > UNDO) past.shift();
    before = painted.slice();
    cover = new Float32Array(scan.length);
    last = place(event);
    dab(...last);
    draw();
  });
  canvas.addEventListener("pointermove", (event) => {
    if (!last) return;
    const next = place(event), far = Math.hypot(next[0] - last[0], next[1] - last[1]);
    for (let s = 0.5; s < far; s += 0.5)
      dab(last[0] + ((next[0] - last[0]) * s) / far, last[1] + ((next[1] - last[1]) * s) / far);
    dab(...next);
    last = next;
    draw();
  });
  function lift() {
    if (!last) return;
    last = null;
    if (always.checked) ask();
  }
  canvas.addEventListener("pointerup", lift);
  canvas.addEventListener("pointercancel", lift);

  function ask() {
    again = waiting; // one at a time; what was painted meanwhile is asked for afterwards
    if (!waiting) {
      waiting = true;
      model.send({ slice: textOf(painted), marks: textOf(marks) });
    }
    tell();
  }
  undo.addEventListener("click", () => {
    if (past.length) [painted, marks] = past.pop();
    draw();
  });
  reset.addEventListener("click", () => {
    painted = scan.slice();
    marks = new Uint8Array(scan.length);
    past.length = 0;
    score = null;
    picture.style.display = "none";
    draw();
  });
  heal.addEventListener("click", ask);
  threshold.addEventListener("input", tell);

  function answered() {
    const answer = model.get("answer");
    waiting = false;
    if (answer.score) {
      score = bytesOf(answer.score);
      picture.src = `data:image/png;base64,${answer.picture}`;
      picture.alt = "What the network took for noise, the healed slice and the anomaly map";
      picture.style.display = "block";
    }
    if (again) ask();
    else tell();
    if (answer.error) words.textContent = answer.error;
  }
  model.on("change:answer", answered);
  draw();
  return () => model.off("change:answer", answered);
}

export default { render };
