"use strict";
const page = JSON.parse(document.getElementById("data").textContent);
const FLAT = 1e-6; // a spread this small, relative to the largest value, is rounding
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const colours = bytes(page.colours);
const byId = (id) => document.getElementById(id);
const state = () => ({
  view: byId("view").value,
  opacity: Number(byId("opacity").value),
  fade: byId("fade").value,
  scale: byId("scale").value,
  layer: page.layers.length ? Number(byId("layer").value) : 0,
  compare: byId("compare").value,
});

function element(name, attributes = {}, ...children) {
  const result = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) result.setAttribute(key, value);
  result.append(...children);
  return result;
}

/* A map's values on its patch grid. */
function valuesOf(record) {
  const data = bytes(record.numbers);
  const step = (record.high - record.low) / record.steps;
  const count = record.steps === 255 ? data.length : data.length / 2;
  const values = new Float32Array(count);
  for (let i = 0; i < count; i++) {
    const number = record.steps === 255 ? data[i] : data[2 * i] + 256 * data[2 * i + 1];
    values[i] = record.low + number * step;
  }
  return values;
}

/* Where the pixels of an axis lie between two cells: the first one, and the weight of the second. */
function positions(axis) {
  const below = new Int32Array(axis.count), weight = new Float32Array(axis.count);
  for (let i = 0; i < axis.count; i++) {
    const place = Math.min(Math.max(axis.slope * i + axis.intercept, 0), axis.cells - 1);
    below[i] = Math.min(Math.floor(place), Math.max(axis.cells - 2, 0));
    weight[i] = place - below[i];
  }
  return { below, weight };
}

/* Bilinear: values on the grid -> values on the pixels, row by row. */
function placed(values, image) {
  const rows = positions(image.rows), cols = positions(image.cols);
  const width = image.cols.count, cells = image.cols.cells, result = new Float32Array(image.rows.count * width);
  const right = cells > 1 ? 1 : 0, down = image.rows.cells > 1 ? cells : 0;
  for (let y = 0; y < image.rows.count; y++) {
    for (let x = 0; x < width; x++) {
      const at = rows.below[y] * cells + cols.below[x], h = cols.weight[x], v = rows.weight[y];
      const top = values[at] * (1 - h) + values[at + right] * h;
      const bottom = values[at + down] * (1 - h) + values[at + down + right] * h;
      result[y * width + x] = top * (1 - v) + bottom * v;
    }
  }
  return result;
}

const isSeen = (image, x, y) =>
  y >= image.rows.first && y <= image.rows.last && x >= image.cols.first && x <= image.cols.last;

function rangeOf(image, maps) {
  let low = Infinity, high = -Infinity;
  for (const map of maps) {
    for (let y = image.rows.first; y <= image.rows.last; y++) {
      for (let x = image.cols.first; x <= image.cols.last; x++) {
        const value = map[y * image.cols.count + x];
        if (value < low) low = value;
        if (value > high) high = value;
      }
    }
  }
  return high - low <= FLAT * Math.abs(high) ? [0, Infinity] : [low, high];
}

/* Saliency in [0, 1] of all targets of an image, of one frame and layer. */
function saliencies(image, frame, layer, scale) {
  const maps = image.targets.map((target) => placed(valuesOf(target.maps[frame][layer]), image));
  const shared = scale === "shared" ? rangeOf(image, maps) : null;
  return maps.map((map) => {
    const [low, high] = shared || rangeOf(image, [map]);
    return { raw: map, saliency: map.map((value) => Math.min(Math.max((value - low) / (high - low), 0), 1) || 0) };
  });
}

function draw(canvas, image, bitmap, saliency, options) {
  const width = image.cols.count, height = image.rows.count, context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, width, height);
  const pixels = context.getImageData(0, 0, width, height), data = pixels.data;
  for (let y = 0; y < height; y++) {
    for (let x = 0; x < width; x++) {
      const at = y * width + x, out = 4 * at;
      if (!isSeen(image, x, y)) {
        const grey = ((data[out] + data[out + 1] + data[out + 2]) / 3 * 0.35 + 110) * ((x + y) % 12 < 2 ? 0.6 : 1);
        data[out] = data[out + 1] = data[out + 2] = grey;
        continue;
      }
      if (options.view === "original") continue;
      const value = saliency[at], colour = 3 * Math.round(value * 255);
      if (options.view === "contour") {
        const edge = [0.5, 0.75].some((level) => (value >= level) !== ((x ? saliency[at - 1] : value) >= level)
          || (value >= level) !== ((y ? saliency[at - width] : value) >= level));
        if (edge) { data[out] = 255; data[out + 1] = 220; data[out + 2] = 0; }
        continue;
      }
      const alpha = options.view === "map" ? 1 : options.opacity * (options.fade === "follow" ? value : 1);
      for (let c = 0; c < 3; c++) data[out + c] += (colours[colour + c] - data[out + c]) * alpha;
    }
  }
  context.putImageData(pixels, 0, 0);
}

function loaded(uri) {
  return new Promise((resolve) => {
    const bitmap = new Image();
    bitmap.onload = () => resolve(bitmap);
    bitmap.src = uri;
  });
}

class Section {
  constructor(image, index) {
    this.image = image; this.selected = 0; this.frame = 0; this.other = Math.min(1, image.targets.length - 1);
    this.panels = element("div", { class: "panels", role: "tabpanel", id: `panel-${index}` });
    this.tabs = element("div", { role: "tablist", "aria-label": `Prompts for ${image.name}`, "aria-orientation": "vertical" });
    const scores = image.targets.map((target) => target.score).filter((score) => score !== null);
    const low = Math.min(0, ...scores), high = Math.max(...scores, low + 1e-9);
    image.targets.forEach((target, number) => {
      const tab = element("button", { role: "tab", type: "button", id: `tab-${index}-${number}`, "aria-controls": `panel-${index}` }, target.label);
      if (target.score !== null) {
        const bar = element("progress", { max: "1", value: String((target.score - low) / (high - low)), "aria-hidden": "true" });
        tab.append(element("small", {}, target.caption), bar);
      }
      if (target.note) tab.append(element("small", { class: "note" }, target.note));
      tab.addEventListener("click", () => { if (number !== this.selected) { this.other = this.selected; this.selected = number; } this.show(); });
      this.tabs.append(tab);
    });
    this.tabs.addEventListener("keydown", (event) => {
      const move = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
      if (!move) return;
      event.preventDefault();
      this.other = this.selected;
      this.selected = (this.selected + move + image.targets.length) % image.targets.length;
      this.show();
      this.tabs.children[this.selected].focus();
    });
    const left = element("div", {}, this.panels);
    if (image.frames.length > 1) {
      const slider = element("input", { type: "range", min: "0", max: String(image.frames.length - 1), step: "1", value: "0" });
      const name = element("output", {}, image.captions[0]);
      slider.addEventListener("input", () => { this.frame = Number(slider.value); name.value = image.captions[this.frame]; this.show(); });
      left.append(element("label", {}, "Frame ", slider, " ", name));
    }
    this.node = element("section", { class: "image", "aria-label": image.name }, element("h2", {}, image.name), left, this.tabs);
  }

  async show(all = false) {
    const options = state(), image = this.image, several = all || options.compare === "beside";
    const turn = this.turn = (this.turn || 0) + 1;
    if (this.shown !== this.frame) { this.bitmap = await loaded(image.frames[this.frame]); this.shown = this.frame; }
    if (turn !== this.turn) return;
    const scale = options.compare === "minus" ? "shared" : options.scale;
    this.maps = saliencies(image, this.frame, options.layer, scale);
    [...this.tabs.children].forEach((tab, number) => {
      tab.setAttribute("aria-selected", String(number === this.selected));
      tab.tabIndex = number === this.selected ? 0 : -1;
    });
    this.panels.setAttribute("aria-labelledby", this.tabs.children[this.selected].id);
    const numbers = several ? image.targets.map((_, number) => number) : [this.selected];
    this.panels.replaceChildren(...numbers.map((number) => this.panel(number, options)));
  }

  panel(number, options) {
    const image = this.image, target = image.targets[number];
    let { saliency, raw } = this.maps[number], title = target.label;
    if (options.compare === "minus" && image.targets.length > 1 && this.other !== number) {
      const other = this.maps[this.other].saliency;
      saliency = saliency.map((value, i) => Math.max(value - other[i], 0));
      title = `${target.label} rather than ${image.targets[this.other].label}`;
    }
    const canvas = element("canvas", { width: image.cols.count, height: image.rows.count, role: "img", "aria-label": `${title}: map over ${image.name}` });
    canvas.style.maxWidth = `${Math.max(canvas.width, 420)}px`;
    draw(canvas, image, this.bitmap, saliency, options);
    const value = element("figcaption", { class: "value" }, "point at the image for values");
    canvas.addEventListener("pointermove", (event) => {
      const box = canvas.getBoundingClientRect();
      const x = Math.min(Math.max(Math.floor((event.clientX - box.left) / box.width * canvas.width), 0), canvas.width - 1);
      const y = Math.min(Math.max(Math.floor((event.clientY - box.top) / box.height * canvas.height), 0), canvas.height - 1);
      const column = Math.floor((x + 0.5) * image.cols.original / image.cols.count);
      const row = Math.floor((y + 0.5) * image.rows.original / image.rows.count);
      const at = y * canvas.width + x;
      value.textContent = isSeen(image, x, y)
        ? `x ${column}, y ${row}: saliency ${saliency[at].toFixed(3)}, relevance ${raw[at].toPrecision(3)}`
        : `x ${column}, y ${row}: never seen by the model`;
    });
    return element("figure", { class: Math.max(canvas.width, canvas.height) <= 128 ? "small" : "" }, element("figcaption", {}, title), canvas, value);
  }
}

const sections = page.images.map((image, index) => new Section(image, index));
const visible = new Set();
const observer = new IntersectionObserver((entries) => {
  for (const entry of entries) {
    const section = sections.find((one) => one.node === entry.target);
    if (entry.isIntersecting) { visible.add(section); section.show(); } else { visible.delete(section); }
  }
}, { rootMargin: "300px" });

/* Which images are in the page: those that the search leaves, in the order asked for, a hundred at a time. */
const AT_ONCE = 100;
let listed = sections, shown = AT_ONCE;
const best = (section, value, wanted) => wanted(...section.image.targets.map(value));
const ORDERS = {
  name: (a, b) => a.image.name.localeCompare(b.image.name, undefined, { numeric: true }),
  score: (a, b) => best(b, (target) => target.score, Math.max) - best(a, (target) => target.score, Math.max),
  low: (a, b) => best(a, (target) => target.score, Math.min) - best(b, (target) => target.score, Math.min),
  entropy: (a, b) => best(b, (target) => target.entropy, Math.max) - best(a, (target) => target.entropy, Math.max),
  focus: (a, b) => best(a, (target) => target.entropy, Math.min) - best(b, (target) => target.entropy, Math.min),
};

function list() {
  const search = byId("search") ? byId("search").value.trim().toLowerCase() : "";
  const order = byId("order") ? byId("order").value : "none";
  listed = sections.filter(({ image }) =>
    image.name.toLowerCase().includes(search) || image.targets.some((target) => target.label.toLowerCase().includes(search)));
  if (ORDERS[order]) listed = [...listed].sort(ORDERS[order]);
  observer.disconnect();
  visible.clear();
  const nodes = listed.slice(0, shown).map((section) => section.node);
  byId("images").replaceChildren(...nodes);
  for (const node of nodes) observer.observe(node);
  byId("more").hidden = listed.length <= shown;
  if (byId("count")) byId("count").value = `${listed.length} of ${sections.length} images`;
}

list();
byId("more").addEventListener("click", () => { shown += AT_ONCE; list(); });
if (byId("search")) {
  byId("search").addEventListener("input", () => { shown = AT_ONCE; list(); });
  byId("order").addEventListener("input", () => { shown = AT_ONCE; list(); });
}
for (const control of document.querySelectorAll(".controls:not(.list) select, .controls:not(.list) input")) {
  control.addEventListener("input", () => {
    if (page.layers.length) byId("layer-name").value = state().layer ? page.layers[state().layer - 1] : "all";
    for (const section of visible) section.show();
  });
}
for (const form of document.querySelectorAll("form")) form.addEventListener("submit", (event) => event.preventDefault());
addEventListener("beforeprint", () => { for (const section of sections) if (section.bitmap) section.show(true); });
addEventListener("afterprint", () => { for (const section of visible) section.show(); });
const bar = byId("bar").getContext("2d");
for (let i = 0; i < 256; i++) {
  bar.fillStyle = `rgb(${colours[3 * i]} ${colours[3 * i + 1]} ${colours[3 * i + 2]})`;
  bar.fillRect(i, 0, 1, 12);
}
