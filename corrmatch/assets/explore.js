// The correlation explorer: one module for the notebook (anywidget calls `render`) and for the standalone page (`standalone`).
// All arithmetic of the library's region_maps and propagate_regions is repeated here in the same precision and order.

const GRID = 10000;        // confidence and tau are compared as whole ten-thousandths

// ---- arithmetic -------------------------------------------------------------------------------------------------

// The two coarse samples that each fine one mixes, corners aligned, and their float32 weights.
export function taps(n, size) {
  const step = Math.fround((n - 1) / Math.max(size - 1, 1));
  const near = new Int32Array(size), far = new Int32Array(size), wNear = new Float32Array(size), wFar = new Float32Array(size);
  for (let i = 0; i < size; i++) {
    const place = Math.fround(i * step);
    near[i] = Math.min(Math.floor(place), n - 1);
    far[i] = Math.min(near[i] + 1, n - 1);
    wFar[i] = Math.min(Math.max(Math.fround(place - near[i]), 0), 1);
    wNear[i] = 1 - wFar[i];
  }
  return {near, far, wNear, wFar};
}

// Bilinear, along w then along h; one product is rounded to float32, the other is fused into the sum.
export function upsample(map, view, wide, fine) {
  const {gridHeight: gh, gridWidth: gw, height: h, width: w} = view, tx = view.tapsX, ty = view.tapsY, round = Math.fround;
  for (let y = 0; y < gh; y++) {
    for (let x = 0; x < w; x++) {
      wide[y * w + x] = round(map[y * gw + tx.far[x]] * tx.wFar[x]) + map[y * gw + tx.near[x]] * tx.wNear[x];
    }
  }
  let low = Infinity, high = -Infinity;
  for (let y = 0; y < h; y++) {
    const above = ty.near[y] * w, below = ty.far[y] * w, wa = ty.wNear[y], wb = ty.wFar[y], start = y * w;
    for (let x = 0; x < w; x++) {
      const v = round(round(wide[below + x] * wb) + wide[above + x] * wa);
      fine[start + x] = v;
      if (v < low) low = v;
      if (v > high) high = v;
    }
  }
  return {low, high};
}

// Pixels above `cut` of the range; returns how many.
export function cutRegion(fine, low, high, cut, region) {
  const level = Math.fround(Math.fround(cut) * Math.fround(high - low)), round = Math.fround;
  let size = 0;
  for (let i = 0; i < fine.length; i++) size += region[i] = round(fine[i] - low) > level ? 1 : 0;
  return size;
}

// What the confident pixels of a region say: the two shares, the winner (lowest id on ties), and whether it is written.
export function vote(view, region, size, tau) {
  const counts = new Int32Array(view.classes), level = Math.round(tau * GRID), t = Math.fround(tau);
  const {label, confidence} = view;
  if (!label) return null;
  for (let i = 0; i < region.length; i++) if (region[i] && confidence[i] >= level) counts[label[i]]++;
  let confident = 0, winner = 0;
  for (let c = 0; c < counts.length; c++) { confident += counts[c]; if (counts[c] > counts[winner]) winner = c; }
  const confidentShare = size ? Math.fround(confident / size) : 0, majorityShare = confident ? Math.fround(counts[winner] / confident) : 0;
  const accepted = confident > 0 && confidentShare >= t && majorityShare > t;
  return {counts, size, confident, confidentShare, majorityShare, winner: confident ? winner : -1, accepted};
}

// Row p of the map: one query against all keys, softmax over the keys.
export function rowOf(view, p) {
  const {f1, f2, channels: k, positions: n, scale} = view, scores = new Float64Array(n), row = new Float32Array(n);
  for (let c = 0; c < k; c++) {
    const q = f1[c * n + p], start = c * n;
    for (let j = 0; j < n; j++) scores[j] += q * f2[start + j];
  }
  let top = -Infinity, sum = 0;
  for (let j = 0; j < n; j++) { scores[j] *= scale; if (scores[j] > top) top = scores[j]; }
  for (let j = 0; j < n; j++) sum += scores[j] = Math.exp(scores[j] - top);
  for (let j = 0; j < n; j++) row[j] = scores[j] / sum;
  return row;
}

// Column p of the map: all queries against one key; each entry was normalised in its own row (total: log-sum-exp of each row).
export function columnOf(view, p) {
  const {f1, f2, total, channels: k, positions: n, scale} = view, scores = new Float64Array(n), column = new Float32Array(n);
  for (let c = 0; c < k; c++) {
    const q = f2[c * n + p], start = c * n;
    for (let i = 0; i < n; i++) scores[i] += q * f1[start + i];
  }
  for (let i = 0; i < n; i++) column[i] = Math.exp(scores[i] * scale - total[i]);
  return column;
}

// Scores of a network are divided by the square root of their channels; those of raw features by the temperature.
function setTemperature(view, temperature) {
  view.temperature = temperature;
  view.scale = temperature === null ? 1 / Math.sqrt(view.channels) : 1 / temperature;
}

// Log-sum-exp of row p: what columns need of it.
function totalOf(view, p) {
  const {f1, f2, channels: k, positions: n, scale} = view, scores = new Float64Array(n);
  for (let c = 0; c < k; c++) {
    const q = f1[c * n + p], start = c * n;
    for (let j = 0; j < n; j++) scores[j] += q * f2[start + j];
  }
  let top = -Infinity, sum = 0;
  for (let j = 0; j < n; j++) if (scores[j] > top) top = scores[j];
  for (let j = 0; j < n; j++) sum += Math.exp((scores[j] - top) * scale);
  return top * scale + Math.log(sum);
}

// The totals of all rows at a new temperature, a few milliseconds at a time.
function renewTotals(view, done) {
  const wanted = view.temperature, total = new Float32Array(view.positions);
  let p = 0;
  const some = () => {
    if (view.temperature !== wanted) return;
    for (const end = performance.now() + 6; p < total.length && performance.now() < end; p++) total[p] = totalOf(view, p);
    if (p < total.length) { setTimeout(some); return; }
    view.total = total; view.totalAt = wanted;
    done();
  };
  setTimeout(some);
}

// Region propagation: the regions of the drawn positions vote in turn, on labels that earlier ones have rewritten and
// on pixels that were confident before all of them. Yields the number of regions done, returns labels and kept pixels.
export function* propagateRegions(view, drawn, cut, tau) {
  const {label: first, confidence, height, width} = view, level = Math.round(tau * GRID), n = first.length;
  const label = first.slice(), kept = new Uint8Array(n), wide = new Float32Array(view.gridHeight * width), fine = new Float32Array(n), region = new Uint8Array(n);
  const now = {...view, label};
  let accepted = 0;
  for (let i = 0; i < n; i++) kept[i] = confidence[i] >= level ? 1 : 0;
  for (let r = 0; r < drawn.length; r++) {
    const range = upsample(rowOf(view, drawn[r]), view, wide, fine), size = cutRegion(fine, range.low, range.high, cut, region);
    const found = vote(now, region, size, tau);
    if (found.accepted) {
      accepted++;
      for (let i = 0; i < n; i++) if (region[i]) { label[i] = found.winner; kept[i] = 1; }
    }
    yield r + 1;
  }
  return {label, kept, accepted, height, width};
}

// Verdict of every pixel, as the library's `verdict`; 4 for what changed where no ground truth is known.
export function verdictOf(view, after) {
  const found = new Uint8Array(after.length), truth = view.truth, before = view.label;
  for (let i = 0; i < after.length; i++) {
    if (before[i] === after[i]) continue;
    found[i] = !truth ? 4 : truth[i] === 255 ? 3 : after[i] === truth[i] ? 1 : before[i] === truth[i] ? 2 : 3;
  }
  return found;
}

// The class with the largest score after the scores of all positions were weighted and summed.
export function arrived(view, weights) {
  const {scores, classes, positions: n} = view;
  if (!scores) return -1;
  let best = -1, most = -Infinity;
  for (let c = 0; c < classes; c++) {
    let sum = 0;
    for (let i = 0; i < n; i++) sum += scores[c * n + i] * weights[i];
    if (sum > most) { most = sum; best = c; }
  }
  return best;
}

// Grid position nearest to a pixel, halves upwards; and the pixel under a grid position.
export const toGrid = (v, size, n) => size < 2 ? 0 : Math.floor((2 * v * (n - 1) + size - 1) / (2 * (size - 1)));
export const toPixel = (g, size, n) => n < 2 ? 0 : Math.floor((2 * g * (size - 1) + n - 1) / (2 * (n - 1)));

// ---- what came from Python --------------------------------------------------------------------------------------

async function pixels(bytes, width, height) {
  const bitmap = await createImageBitmap(new Blob([bytes]), {colorSpaceConversion: 'none'});
  const canvas = document.createElement('canvas');
  canvas.width = width; canvas.height = height;
  const context = canvas.getContext('2d', {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  return context.getImageData(0, 0, width, height).data;
}

async function unpack(meta, bytes) {
  const kinds = {float32: Float32Array, uint16: Uint16Array, uint8: Uint8Array};
  const take = ([start, length, kind]) => new kinds[kind](bytes.slice(start, start + length).buffer);
  const views = [];
  for (const m of meta.views) {
    const view = {name: m.name, height: m.size[0], width: m.size[1], gridHeight: m.grid[0], gridWidth: m.grid[1], channels: m.channels,
      positions: m.grid[0] * m.grid[1], classes: meta.names.length, tapsX: taps(m.grid[1], m.size[1]), tapsY: taps(m.grid[0], m.size[0])};
    for (const [name, where] of Object.entries(m.arrays)) view[name] = take(where);
    setTemperature(view, meta.temperature);
    view.totalAt = meta.temperature;
    view.pixels = await pixels(view.image, view.width, view.height);
    views.push(view);
  }
  return {views, lut: take(meta.lut), names: meta.names, colors: meta.colors, title: meta.title, drawn: meta.drawn, verdicts: meta.verdicts};
}

// ---- the panel --------------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name === 'text' ? node.textContent = value : node.setAttribute(name, value);
  node.append(...children);
  return node;
}

let made = 0;  // makes the ids of one page differ

function slider(label, hint, min, max, step, onInput) {
  const id = `cx-${++made}`, output = make('output', {for: id});
  const input = make('input', {type: 'range', id, min, max, step, title: hint});
  input.addEventListener('input', () => onInput(Number(input.value)));
  const node = make('div', {class: 'cx-slider'}, make('label', {for: id, text: label, title: hint}), output, input);
  return {node, input, show: (value, text) => { if (Number(input.value) !== value) input.value = value; output.textContent = text; input.setAttribute('aria-valuetext', text); }};
}

function choice(label, options, onPick) {
  const buttons = options.map(([value, text, hint]) => {
    const button = make('button', {type: 'button', text, title: hint || ''});
    button.addEventListener('click', () => onPick(value));
    return [value, button];
  });
  const node = make('div', {class: 'cx-choice', role: 'group', 'aria-label': label}, make('span', {class: 'cx-caption', text: label}),
    make('div', {class: 'cx-buttons'}, ...buttons.map(b => b[1])));
  return {node, show: value => buttons.forEach(([v, b]) => b.setAttribute('aria-pressed', String(v === value)))};
}

function gauge(label, hint) {
  const fill = make('div', {class: 'cx-fill'}), mark = make('div', {class: 'cx-mark'}), text = make('span', {class: 'cx-value'});
  const node = make('div', {class: 'cx-gauge', title: hint}, make('span', {text: label}), text, make('div', {class: 'cx-track', 'aria-hidden': 'true'}, fill, mark));
  return {node, fill, show: (share, tau, good, words) => {
    fill.style.width = `${100 * share}%`; mark.style.left = `${100 * tau}%`; text.textContent = words;
    node.dataset.state = good === null ? 'none' : good ? 'good' : 'bad';
  }};
}

function field(list, label) {
  const value = make('span', {class: 'cx-value'}), name = make('span', {text: label});
  list.append(make('div', {class: 'cx-fact'}, name, value));
  value.label = name;
  return value;
}

const percent = v => `${(100 * v).toFixed(1)}\u00a0%`;
const brief = v => v === 0 ? '0' : v < 0.001 ? v.toExponential(1) : v.toPrecision(3);
const READING = {
  'false row': 'Row: where this position sends its scores. The row sums to 1.',
  'false column': 'Column: which positions send their scores here, and with what weight. Columns do not sum to 1.',
  'true row': 'Row: from which positions this one fetches scores. The result is a weighted mean.',
  'true column': 'Column: which positions fetch the scores of this one. Columns do not sum to 1.',
};

// The panel's parts, and what each one does to the state.
function build(el, data, act) {
  const ui = {}, many = data.views.length > 1;
  ui.base = make('canvas', {class: 'cx-base'}); ui.over = make('canvas', {class: 'cx-over'});
  ui.stage = make('div', {class: 'cx-stage', tabindex: '0', role: 'application', 'aria-roledescription': 'image with a movable position',
    'aria-label': 'Image. Arrow keys move the position, Enter pins it, Escape releases it.'}, ui.base, ui.over);
  ui.scale = make('canvas', {class: 'cx-scale', width: '256', height: '1', 'aria-hidden': 'true'});
  ui.low = make('span'); ui.high = make('span'); ui.cutMark = make('div', {class: 'cx-cutmark'}); ui.scaleName = make('span', {class: 'cx-caption'});
  const scale = make('div', {class: 'cx-legend'}, ui.scaleName, make('div', {class: 'cx-bar'}, ui.scale, ui.cutMark),
    make('div', {class: 'cx-ends'}, ui.low, make('span', {text: 'white line: region cut from the row'}), ui.high));
  ui.words = make('p', {class: 'cx-words'});

  const facts = make('div');
  ui.where = field(facts, 'pixel y, x'); ui.here = field(facts, 'class, confidence'); ui.after = field(facts, 'after propagation'); ui.share = field(facts, 'largest share');
  ui.regionSize = make('span', {class: 'cx-value'});
  ui.confident = gauge('confident share', 'pixels of the region with confidence at least tau; must be at least tau');
  ui.majority = gauge('majority share', 'confident pixels by class, the most frequent class first; it must be above tau');
  ui.majority.fill.classList.add('cx-mix');
  ui.verdict = make('p', {class: 'cx-verdict'});
  ui.live = make('div', {class: 'cx-live', 'aria-live': 'polite'});

  ui.view = choice('View', data.views.map((v, i) => [v.name, v.name]), name => act.set('view', name));
  ui.form = choice('Propagation', [[false, 'reference', 'send scores along rows'], [true, 'transposed', 'fetch a weighted mean']], v => act.set('transposed', v));
  ui.shown = choice('Show', [['row', 'row', 'what the region is cut from'], ['column', 'column', 'the same pairs, seen from the other side']], v => act.set('shown', v));
  ui.ground = choice('Under it', [['image', 'image'], ['labels', 'labels', 'pseudo-labels, pale where not confident']], v => act.set('ground', v));
  ui.cut = slider('cut', 'share of the row\u2019s range above which a pixel belongs to the region', 0, 1, 0.01, v => act.set('cut', v));
  ui.tau = slider('\u03c4', 'gates confidence, confident share and majority share', 0, 1, 0.005, v => act.set('tau', v));
  ui.temperature = slider('temperature', 'similarities are divided by it before the softmax; lower: a row keeps to fewer positions', 0.05, 1.5, 0.01, v => act.set('temperature', v));
  ui.opacity = slider('heat map', 'opacity of the heat map', 0, 1, 0.05, v => act.set('opacity', v));
  ui.pin = make('button', {type: 'button', text: 'Pin', title: 'keep this position (or click the image)'});
  ui.reset = make('button', {type: 'button', text: 'Reset'});
  ui.pin.addEventListener('click', () => act.set('pinned', !act.state.pinned)); ui.reset.addEventListener('click', act.reset);

  ui.all = make('button', {type: 'button', text: `All ${data.drawn.length} regions \u2192 new mask`, title: 'let the regions of randomly drawn positions vote in turn'});
  ui.all.addEventListener('click', act.runAll);
  ui.progress = make('p', {class: 'cx-progress', 'aria-live': 'polite'});
  ui.result = choice('Look at', [['', 'row'], ['before', 'before'], ['after', 'after'], ['changes', 'changes']], v => act.look(v));
  ui.result.node.classList.add('cx-four');
  ui.changes = make('p', {class: 'cx-changes'});

  const part = (title, ...nodes) => make('section', {}, make('h3', {text: title}), ...nodes);
  const voting = data.views.some(v => v.label), all = voting && data.drawn.length;
  const panel = make('div', {class: 'cx-panel'}, part('Under the cursor', facts),
    voting ? part('Its region and vote', make('div', {class: 'cx-gauge'}, make('span', {text: 'region'}), ui.regionSize), ui.confident.node, ui.majority.node, ui.verdict)
      : part('Its region', make('div', {class: 'cx-gauge'}, make('span', {text: 'region'}), ui.regionSize), ui.verdict),
    ...(all ? [part('All regions', ui.all, ui.progress, ui.result.node, ui.changes)] : []),
    part('Settings', ui.cut.node, ...(voting ? [ui.tau.node] : []), ...(act.state.temperature === null ? [] : [ui.temperature.node]), ui.opacity.node, make('div', {class: 'cx-choices'}, ...(many ? [ui.view.node] : []), ui.form.node, ui.shown.node, ...(voting ? [ui.ground.node] : [])),
      make('div', {class: 'cx-actions'}, ui.pin, ui.reset)));
  const root = make('div', {class: 'cx-root', role: 'region', 'data-lm-suppress-shortcuts': 'true', 'aria-label': data.title || 'correlation explorer'},
    ...(data.title ? [make('h2', {text: data.title})] : []),
    make('div', {class: 'cx-columns'}, ui.left = make('div', {class: 'cx-left'}, ui.stage, scale, ui.words), panel), ui.live);
  el.replaceChildren(root);
  ui.root = root;
  return ui;
}

// ---- drawing ----------------------------------------------------------------------------------------------------

// What lies under the heat map: the image or the labels, somewhat greyer and darker as the heat map grows stronger.
function dim(ground, opacity) {
  const under = new Uint8ClampedArray(ground.length), light = 1 - 0.3 * opacity, grey = 0.6 * opacity, keep = light * (1 - grey);
  for (let j = 0; j < ground.length; j += 4) {
    const flat = light * grey * (0.3 * ground[j] + 0.59 * ground[j + 1] + 0.11 * ground[j + 2]);
    for (let a = 0; a < 3; a++) under[j + a] = keep * ground[j + a] + flat;
  }
  return under;
}

// For each of 256 levels of the heat map its colour times its opacity, and what is left for the ground. The opacity follows
// the weight, so that the image stays visible where the row gives nothing.
function heatTable(lut, opacity) {
  const tint = new Int32Array(768), rest = new Int32Array(256);
  for (let c = 0; c < 256; c++) {
    const share = opacity * Math.sqrt(c / 255);
    rest[c] = Math.round(256 * (1 - share));
    for (let a = 0; a < 3; a++) tint[3 * c + a] = Math.round(256 * share * lut[3 * c + a]);
  }
  return {tint, rest};
}

// In whole numbers, 256 of them a unit; a pixel is written as one word.
function paintHeat(out, under, fine, low, high, {tint, rest}) {
  const scale = high > low ? 256 / (high - low) : 0, words = new Uint32Array(out.buffer);
  for (let i = 0, j = 0; i < fine.length; i++, j += 4) {
    let c = (fine[i] - low) * scale | 0;
    if (c > 255) c = 255;
    const r = rest[c];
    c *= 3;
    words[i] = 0xff000000 | (under[j + 2] * r + tint[c + 2] >> 8) << 16 | (under[j + 1] * r + tint[c + 1] >> 8) << 8 | under[j] * r + tint[c] >> 8;
  }
}

// Labels in their colours on the image, mixed with white where they are not kept.
function labelGround(view, colors, label, kept) {
  const ground = new Uint8ClampedArray(4 * label.length), image = view.pixels;
  for (let i = 0, j = 0; i < label.length; i++, j += 4) {
    const c = colors[label[i]];
    for (let a = 0; a < 3; a++) ground[j + a] = kept(i) ? 0.65 * c[a] + 0.35 * image[j + a] : 0.2 * c[a] + 0.2 * image[j + a] + 153;
    ground[j + 3] = 255;
  }
  return ground;
}

// Verdict colours on a dark grey image.
function changeGround(view, colors, found) {
  const ground = new Uint8ClampedArray(4 * found.length), image = view.pixels;
  for (let i = 0, j = 0; i < found.length; i++, j += 4) {
    const grey = 0.5 * (0.3 * image[j] + 0.59 * image[j + 1] + 0.11 * image[j + 2]), c = found[i] ? colors[found[i]] : [grey, grey, grey];
    for (let a = 0; a < 3; a++) ground[j + a] = c[a];
    ground[j + 3] = 255;
  }
  return ground;
}

// The border of a region as lines between pixels, in pixel coordinates.
function outline(region, width, height) {
  const path = new Path2D(), at = (y, x) => y >= 0 && y < height && x >= 0 && x < width ? region[y * width + x] : 0;
  for (let y = 0; y <= height; y++) {
    let start = -1;
    for (let x = 0; x <= width; x++) {
      const edge = x < width && at(y, x) !== at(y - 1, x);
      if (edge && start < 0) start = x;
      else if (!edge && start >= 0) { path.moveTo(start, y); path.lineTo(x, y); start = -1; }
    }
  }
  for (let x = 0; x <= width; x++) {
    let start = -1;
    for (let y = 0; y <= height; y++) {
      const edge = y < height && at(y, x) !== at(y, x - 1);
      if (edge && start < 0) start = y;
      else if (!edge && start >= 0) { path.moveTo(x, start); path.lineTo(x, y); start = -1; }
    }
  }
  return path;
}

function paintOver(ui, view, state, border, grid) {
  const canvas = ui.over, context = canvas.getContext('2d'), scale = canvas.width / view.width, ratio = window.devicePixelRatio || 1;
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, canvas.width, canvas.height);
  context.setTransform(scale, 0, 0, canvas.height / view.height, 0, 0);
  const stroke = (path, color, px) => { context.strokeStyle = color; context.lineWidth = px * ratio / scale; context.stroke(path); };
  context.lineJoin = context.lineCap = 'round';
  if (border) { stroke(border, 'rgba(0,0,0,.75)', 4); stroke(border, '#fff', 1.8); }
  const stepY = view.gridHeight > 1 ? (view.height - 1) / (view.gridHeight - 1) : view.height, stepX = view.gridWidth > 1 ? (view.width - 1) / (view.gridWidth - 1) : view.width;
  const box = new Path2D(), least = 9 * ratio / scale, h = Math.max(stepY, least), w = Math.max(stepX, least);
  box.rect(grid[1] * stepX + 0.5 - w / 2, grid[0] * stepY + 0.5 - h / 2, w, h);
  stroke(box, '#fff', 5); stroke(box, state.pinned ? '#d55e00' : '#000', 2.4);
}

// ---- one explorer -----------------------------------------------------------------------------------------------

async function start(model, el) {
  const raw = model.get('blob'), bytes = new Uint8Array(raw.buffer, raw.byteOffset, raw.byteLength), data = await unpack(model.get('meta'), bytes);
  const TRAITS = ['cut', 'tau', 'temperature', 'position', 'view', 'transposed', 'shown', 'ground', 'opacity', 'pinned'];
  const state = Object.fromEntries(TRAITS.map(t => [t, model.get(t)])), first = JSON.parse(JSON.stringify(state));
  let run = null, look = '', ready = true, heat, heatKey, view, ui, image, wide, fine, region, under, groundKey, border, rowKey, row, column, range, rangeRow, size, result, fineKey, regionKey;
  let busy = false, stale = false, event = null, timer = 0, frame = {event: 0, start: 0, end: 0};

  function pickView() {
    const next = data.views.find(v => v.name === state.view) || data.views[0];
    if (next === view) return;
    view = next;
    ui.base.width = view.width; ui.base.height = view.height;
    ui.stage.style.aspectRatio = `${view.width} / ${view.height}`;
    ui.left.style.setProperty('--cx-ratio', view.width / view.height);
    image = new ImageData(view.width, view.height);
    wide = new Float32Array(view.gridHeight * view.width);
    fine = {row: new Float32Array(view.height * view.width), column: new Float32Array(view.height * view.width)};
    region = new Uint8Array(view.height * view.width);
    rowKey = regionKey = groundKey = fineKey = null;
    fit();
  }

  function fit() {
    if (!ui || !view) return;
    const ratio = window.devicePixelRatio || 1, w = Math.max(1, Math.round(ui.stage.clientWidth * ratio)), h = Math.max(1, Math.round(ui.stage.clientHeight * ratio));
    if (ui.over.width !== w || ui.over.height !== h) { ui.over.width = w; ui.over.height = h; }
    ui.base.classList.toggle('cx-sharp', w / ratio > 2 * view.width);
    if (border) draw();
  }

  function compute() {
    if (view.temperature !== state.temperature) {
      setTemperature(view, state.temperature);
      rowKey = null;
      if (view.totalAt !== state.temperature) renewTotals(view, () => { rowKey = null; request(null); });
    }
    ready = view.totalAt === view.temperature;
    const [y, x] = state.position, grid = [toGrid(y, view.height, view.gridHeight), toGrid(x, view.width, view.gridWidth)], p = grid[0] * view.gridWidth + grid[1];
    if (rowKey !== p) { row = rowOf(view, p); if (ready || !column) column = columnOf(view, p); rangeRow = upsample(row, view, wide, fine.row); rowKey = p; regionKey = fineKey = null; }
    if (state.shown === 'column' && fineKey !== 'column') { range = upsample(column, view, wide, fine.column); fineKey = 'column'; }
    if (state.shown === 'row') { range = rangeRow; fineKey = 'row'; }
    if (regionKey !== state.cut) { size = cutRegion(fine.row, rangeRow.low, rangeRow.high, state.cut, region); border = outline(region, view.width, view.height); regionKey = state.cut; }
    result = vote(view, region, size, state.tau);
    return grid;
  }

  function draw() {
    frame.start = performance.now();
    pickView();
    const grid = compute(), result = run && run.result && look ? look : '';
    const ground = result ? `${result} ${run.key} ${run.count}` : `${state.ground === 'labels' && view.label ? state.tau : 'image'} ${state.opacity}`;
    if (groundKey !== ground) { under = result ? resultGround(result) : rowGround(); groundKey = ground; }
    if (result) image.data.set(under);
    else {
      if (heatKey !== state.opacity) { heat = heatTable(data.lut, state.opacity); heatKey = state.opacity; }
      paintHeat(image.data, under, fine[state.shown], range.low, range.high, heat);
    }
    ui.base.getContext('2d', {willReadFrequently: true}).putImageData(image, 0, 0);
    paintOver(ui, view, state, size ? border : null, grid);
    say(grid);
    frame = {event: event === null ? frame.start : event, start: frame.start, end: performance.now(), count: (frame.count || 0) + 1};
    event = null;
  }

  const confident = () => { const level = Math.round(state.tau * GRID), values = view.confidence; return i => values[i] >= level; };
  function rowGround() {
    const labels = state.ground === 'labels' && view.label;
    return dim(labels ? labelGround(view, data.colors, view.label, confident()) : view.pixels, state.opacity);
  }
  function resultGround(result) {
    if (result === 'changes') return changeGround(view, data.verdicts, run.found);
    if (result === 'before') return labelGround(view, data.colors, view.label, confident());
    return labelGround(view, data.colors, run.result.label, i => run.result.kept[i]);
  }

  // All drawn regions vote, some milliseconds at a time; another setting starts anew.
  const runKey = () => `${view.name} ${state.cut} ${state.tau} ${state.temperature}`;
  function runAll() {
    if (!look) look = 'changes';
    const job = run = {key: runKey(), count: run ? run.count + 1 : 0, result: run && run.view === view ? run.result : null, found: run && run.found, view};
    const work = propagateRegions({...view}, data.drawn, state.cut, state.tau);
    const some = () => {
      if (run !== job) return;
      let step;
      for (const end = performance.now() + 12; performance.now() < end;) if ((step = work.next()).done) break;
      if (!step.done) { ui.progress.textContent = `${step.value} of ${data.drawn.length} regions`; setTimeout(some); return; }
      job.result = step.value; job.found = verdictOf(view, step.value.label); job.done = true; job.count += 0.5;
      sayAll(job);
      request(null);
    };
    some();
  }
  let again = 0;
  function follow() {  // a result of other settings is computed anew
    if (run && look && run.key !== runKey()) { clearTimeout(again); again = setTimeout(() => { if (run && run.key !== runKey()) runAll(); }, 150); }
  }
  function lookAt(value) {
    look = value;
    if (look && (!run || run.key !== runKey())) runAll();
    request(null);
  }

  function sayAll({result, found}) {
    const n = found.length, isConfident = confident(), count = [0, 0, 0, 0, 0];
    let before = 0, after = 0;
    for (let i = 0; i < n; i++) { count[found[i]]++; if (isConfident(i)) before++; if (result.kept[i]) after++; }
    ui.progress.textContent = `${result.accepted} of ${data.drawn.length} accepted; pixels in the loss: ${percent(before / n)} \u2192 ${percent(after / n)}`;
    const words = ['', 'repaired', 'broken', 'wrong before and after', 'changed'];
    const parts = (view.truth ? [1, 2, 3] : [4]).map(v => {
      const dot = make('i', {class: 'cx-dot'});
      dot.style.background = `rgb(${data.verdicts[v].join(',')})`;
      return make('span', {}, dot, `${words[v]} ${percent(count[v] / n)}`);
    });
    ui.changes.replaceChildren(...parts);
  }

  // Draws at once, and at most once a frame: what comes later in the frame is drawn with the next.
  function request(ev) {
    if (event === null && ev) event = ev.timeStamp;
    if (busy) { stale = true; return; }
    busy = true;
    draw();
    requestAnimationFrame(() => { busy = false; if (stale) { stale = false; request(null); } });
  }

  function swatch(node, c, text) {
    const dot = make('i', {class: 'cx-dot'});
    dot.style.background = `rgb(${data.colors[c].join(',')})`;
    node.replaceChildren(dot, text);
  }

  function say(grid) {
    const [y, x] = state.position, i = y * view.width + x, values = state.shown === 'row' ? row : column;
    let sum = 0, top = 0;
    for (let j = 0; j < values.length; j++) { sum += values[j]; if (values[j] > top) top = values[j]; }
    ui.where.textContent = `${y}, ${x} (grid ${grid[0]}, ${grid[1]})`;
    if (view.label) swatch(ui.here, view.label[i], `${data.names[view.label[i]]}, ${(view.confidence[i] / GRID).toFixed(3)}`); else ui.here.textContent = '\u2013';
    const waits = !state.transposed && !ready, after = waits ? -1 : arrived(view, state.transposed ? row : column);
    if (after >= 0) swatch(ui.after, after, data.names[after]); else ui.after.textContent = waits ? '\u2026' : '\u2013';
    ui.share.label.textContent = state.shown === 'row' ? 'largest share' : 'largest, sum';
    ui.share.textContent = state.shown === 'row' ? `${brief(100 * top)} % of the row` : `${brief(top)}, ${brief(sum)}`;
    ui.words.textContent = READING[`${state.transposed} ${state.shown}`];
    ui.scaleName.textContent = state.shown === 'row' ? 'weight of each position in the row' : 'weight of this position in the row of each other';
    ui.low.textContent = brief(range.low); ui.high.textContent = brief(range.high);
    ui.cutMark.style.left = `${100 * state.cut}%`; ui.cutMark.hidden = state.shown !== 'row';
    ui.regionSize.textContent = `${size} pixels, ${percent(size / region.length)}`;
    if (result) sayVote(); else ui.verdict.textContent = size ? 'No prediction was given, so there is no vote.' : 'Empty: the row is constant.';
    ui.result.show(run && look ? look : ''); ui.result.node.hidden = ui.changes.hidden = !run;
    if (state.temperature !== null) ui.temperature.show(state.temperature, state.temperature.toFixed(2));
    ui.cut.show(state.cut, state.cut.toFixed(2)); ui.tau.show(state.tau, state.tau.toFixed(3)); ui.opacity.show(state.opacity, percent(state.opacity).replace('.0', ''));
    ui.view.show(view.name); ui.form.show(state.transposed); ui.shown.show(state.shown); ui.ground.show(state.ground);
    ui.pin.setAttribute('aria-pressed', String(state.pinned)); ui.pin.textContent = state.pinned ? 'Unpin' : 'Pin';
    ui.root.classList.toggle('cx-pinned', state.pinned);
  }

  function sayVote() {
    const {confidentShare, majorityShare, winner, accepted, confident, counts} = result, t = Math.fround(state.tau), name = winner < 0 ? 'no confident pixel' : data.names[winner];
    const fixed = v => v.toFixed(3);
    const enough = confident > 0 && confidentShare >= t, agreed = majorityShare > t;
    ui.confident.show(confidentShare, state.tau, size ? enough : null, `${fixed(confidentShare)} ${enough ? '\u2265' : '<'} \u03c4`);
    ui.majority.show(confident ? 1 : 0, state.tau, confident ? agreed : null, confident ? `${name} ${fixed(majorityShare)} ${agreed ? '>' : '\u2264'} \u03c4` : 'no confident pixel');
    const parts = [...counts].map((n, c) => [n, c]).filter(v => v[0]).sort((a, b) => b[0] - a[0]);
    ui.majority.fill.replaceChildren(...parts.map(([n, c]) => {
      const bar = make('i', {title: `${data.names[c]}: ${n} confident pixels`});
      bar.style.cssText = `flex:${n} 0 0;background:rgb(${data.colors[c].join(',')})`;
      return bar;
    }));
    ui.verdict.dataset.state = accepted ? 'good' : 'bad';
    ui.verdict.textContent = accepted ? `\u2713 accepted: all ${size} pixels become ${name}` : !size ? '\u2717 refused: the row is constant, the region empty'
      : !confident ? '\u2717 refused: no confident pixel in it' : !enough ? '\u2717 refused: too few of its pixels are confident' : '\u2717 refused: its confident pixels do not agree';
  }

  // Tells Python and the screen reader, but not sixty times a second.
  function tell() {
    clearTimeout(timer);
    timer = setTimeout(() => {
      for (const t of TRAITS) if (JSON.stringify(model.get(t)) !== JSON.stringify(state[t])) model.set(t, state[t]);
      model.save_changes();
      ui.live.textContent = `${ui.where.textContent}. ${ui.here.textContent}. Region ${ui.regionSize.textContent}. ${ui.verdict.textContent}`;
    }, 150);
  }

  function set(name, value, ev) { state[name] = value; request(ev); follow(); tell(); }
  function reset() { Object.assign(state, JSON.parse(JSON.stringify(first))); run = null; look = ''; ui.progress.textContent = ''; ui.changes.replaceChildren(); request(null); tell(); }
  ui = build(el, data, {set, reset, state, runAll, look: lookAt});
  const scaleContext = ui.scale.getContext('2d'), strip = new ImageData(256, 1);
  for (let i = 0; i < 256; i++) strip.data.set([data.lut[3 * i], data.lut[3 * i + 1], data.lut[3 * i + 2], 255], 4 * i);
  scaleContext.putImageData(strip, 0, 0);

  function locate(ev) {
    const box = ui.stage.getBoundingClientRect(), clamp = (v, n) => Math.min(n - 1, Math.max(0, Math.floor(v)));
    return [clamp((ev.clientY - box.top) / box.height * view.height, view.height), clamp((ev.clientX - box.left) / box.width * view.width, view.width)];
  }
  ui.stage.addEventListener('pointermove', ev => { if (!state.pinned && (ev.pointerType === 'mouse' || ev.buttons)) set('position', locate(ev), ev); });
  ui.stage.addEventListener('pointerdown', ev => {
    const there = locate(ev), same = toGrid(there[0], view.height, view.gridHeight) === toGrid(state.position[0], view.height, view.gridHeight)
      && toGrid(there[1], view.width, view.gridWidth) === toGrid(state.position[1], view.width, view.gridWidth);
    if (ev.pointerType === 'mouse') state.pinned = !(state.pinned && same);
    set('position', there, ev);
  });
  const MOVES = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
  ui.stage.addEventListener('keydown', ev => {
    if (ev.key === 'Enter' || ev.key === ' ') set('pinned', !state.pinned, ev);
    else if (ev.key === 'Escape') set('pinned', false, ev);
    else if (MOVES[ev.key]) {
      const [dy, dx] = MOVES[ev.key], clamp = (v, n) => Math.min(n - 1, Math.max(0, v));
      const gy = clamp(toGrid(state.position[0], view.height, view.gridHeight) + dy, view.gridHeight), gx = clamp(toGrid(state.position[1], view.width, view.gridWidth) + dx, view.gridWidth);
      set('position', [toPixel(gy, view.height, view.gridHeight), toPixel(gx, view.width, view.gridWidth)], ev);
    } else return;
    ev.preventDefault(); ev.stopPropagation();
  });
  const watch = new ResizeObserver(fit);
  watch.observe(ui.stage);
  const changed = TRAITS.map(t => {
    const follow = () => { if (JSON.stringify(model.get(t)) !== JSON.stringify(state[t])) { state[t] = model.get(t); request(null); follow(); } };
    model.on(`change:${t}`, follow);
    return [t, follow];
  });

  draw(); fit();
  const handle = {
    state, set, reset,
    get frame() { return frame; },
    get view() { return view; },
    get size() { return size; },
    get ready() { return ready; },
    get run() { return run && run.done ? {label: [...run.result.label], kept: [...run.result.kept], found: [...run.found], accepted: run.result.accepted} : null; },
    get vote() { return result && {...result, counts: [...result.counts]}; },
    get after() { return arrived(view, state.transposed ? row : column); },
    row: p => [...rowOf(view, p === undefined ? rowKey : p)],
    column: p => [...columnOf(view, p === undefined ? rowKey : p)],
    region: () => [...region],
    regionOf(values, cut = state.cut) {   // the region that any row would give
      const map = Float32Array.from(values), result = new Uint8Array(region.length), out = new Float32Array(region.length), r = upsample(map, view, new Float32Array(wide.length), out);
      cutRegion(out, r.low, r.high, cut, result);
      return [...result];
    },
    pixel: (y, x) => [...ui.base.getContext('2d', {willReadFrequently: true}).getImageData(x, y, 1, 1).data],
  };
  el.__explorer = window.__explorer = handle;
  return () => { watch.disconnect(); clearTimeout(timer); clearTimeout(again); run = null; changed.forEach(([t, f]) => model.off(`change:${t}`, f)); };
}

function render({model, el}) {
  let stop = () => {}, gone = false;
  el.classList.add('corrmatch-explorer');
  start(model, el).then(s => { stop = s; if (gone) s(); }, error => { el.textContent = `explorer: ${error.message}`; });
  return () => { gone = true; stop(); };
}

// The page's stand-in for the notebook's model: values that nobody else changes.
export async function standalone(el, {meta, state, data}) {
  const packed = await (await new Blob([Uint8Array.from(atob(data), c => c.charCodeAt(0))]).stream().pipeThrough(new DecompressionStream('deflate'))).getReader();
  const chunks = [];
  for (let c = await packed.read(); !c.done; c = await packed.read()) chunks.push(c.value);
  const blob = new DataView(await new Blob(chunks).arrayBuffer()), values = {...state, meta, blob};
  render({el, model: {get: name => values[name], set: (name, value) => { values[name] = value; }, save_changes() {}, on() {}, off() {}}});
}

export default {render};
