// The label page: tools, keys, touch, saving. What it computes stands in brush.js.
// Texts that come from the folder (names, messages) are set as text, never as HTML.
import {IGNORE, cutPixels, decodeRuns, encodeRuns, fillFrom, polygon, regionMap, stroke, unpackFeatures} from './brush.js';

const TOKEN = new URLSearchParams(location.search).get('token') || '';
const TOOLS = [
  ['region', 'Region', 'R', 'Point at a thing and click: its region gets the class.'], ['brush', 'Brush', 'B', 'Paint with the class.'],
  ['eraser', 'Eraser', 'E', 'Paint with “unlabeled”.'], ['polygon', 'Polygon', 'P', 'Click corners; Enter or a double click closes it.'],
  ['fill', 'Fill', 'F', 'Give the class to the area of one label under the pointer.'], ['hand', 'Move', 'H', 'Drag the image.']];
const KEYS = [
  ['1 … 9, 0', 'class; 0 is ignore/unlabeled'], ['R B E P F H', 'region, brush, eraser, polygon, fill, move'],
  ['arrow keys', 'move the pointer; Shift: one pixel'], ['Space', 'apply the tool at the pointer'], ['Enter', 'close the polygon, or apply'],
  ['Backspace, Esc', 'remove a corner, drop the polygon'], ['[ ] or wheel', 'cut of the region, size of the brush'], ['+ − or Ctrl+wheel', 'zoom'],
  ['W', 'whole image'], ['right or middle drag', 'move the image; two fingers do, too'], ['Z, Shift+Z', 'undo, redo'], [', .', 'previous, next image'],
  ['K', 'keep what is labeled'], ['C', 'only the part around the pointer'], ['G', 'follow edges'], ['V', 'show or hide the labels'], ['A', 'accept the confident prediction'], ['?', 'this help']];
const MOST_STEPS = 200;      // of undo
const KEEPALIVE = 60_000;    // bytes that a page may still send while it is closed

const state = {index: 0, tool: 'region', classId: 0, cut: .5, radius: 12, opacity: .55, tau: .9, edges: true, connected: false, keep: false, shown: true, cursor: null, byKey: false};
const view = {scale: 1, x: 0, y: 0, ratio: 1};
const frame = {count: 0, event: 0, start: 0, end: 0};
let folder = null, image = null, points = [], loading = 0, ui = {};

// ---- the server ---------------------------------------------------------------------------------------------

async function ask(path, options = {}) {
  let reply;
  try {
    reply = await fetch(path, {...options, headers: {'X-Token': TOKEN, ...options.headers}});
  } catch {
    throw Object.assign(new Error('the server does not answer: start `corrmatch label` again'), {code: 0});
  }
  if (!reply.ok) throw Object.assign(new Error(await reply.text()), {code: reply.status});
  return reply;
}

const versionOf = reply => reply.headers.get('ETag').replace(/^W\//, '').replaceAll('"', '');
const runsOf = async reply => new Uint32Array(await reply.arrayBuffer());

// ---- small things -------------------------------------------------------------------------------------------

function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) name === 'text' ? node.textContent = value : node.setAttribute(name, value);
  node.append(...children);
  return node;
}

const clamp = (value, low, high) => Math.min(high, Math.max(low, value));
const percent = share => `${(100 * share).toFixed(share > 0 && share < .1 ? 1 : 0)} %`;
const color = id => id === IGNORE ? [255, 255, 255] : folder.classes[id].color;
const className = id => id === IGNORE ? 'ignore / unlabeled' : folder.classes[id].name;

function banner(text, kind = 'info', actions = [], key = text) {
  dismiss(key);
  const node = make('div', {class: 'banner', 'data-kind': kind, role: kind === 'bad' ? 'alert' : 'status'}, make('span', {text}));
  node.dataset.key = key;
  for (const [label, run] of [...actions, ...(actions.length ? [] : [['Dismiss', () => {}]])]) {
    const button = make('button', {type: 'button', text: label});
    button.addEventListener('click', () => { dismiss(key); run(); });
    node.append(button);
  }
  ui.banners.append(node);
  resize();
}

function dismiss(key) {
  for (const node of [...ui.banners.children]) if (node.dataset.key === key) node.remove();
  resize();
}

function say(text) { ui.live.textContent = text; }

// ---- the image and its mask ---------------------------------------------------------------------------------

async function open(index) {
  const number = ++loading;
  if (image && !(await settled(image))) return;
  state.index = index;
  points = [];
  image = null;
  ui.wait.textContent = 'Loading the image …';
  showFacts();
  try {
    const [pixels, labels] = await Promise.all([ask(`/api/image/${index}`).then(r => r.blob()), ask(`/api/mask/${index}`)]);
    const version = versionOf(labels), runs = await runsOf(labels);
    const bitmap = await createImageBitmap(pixels, {colorSpaceConversion: 'none'});
    if (number !== loading) return;
    image = prepare(index, bitmap, runs, version);
  } catch (error) {
    if (number !== loading) return;
    ui.wait.textContent = '';
    banner(error.message, 'bad', [], 'image');
    showFacts(); drawBase(); request();
    return;
  }
  dismiss('image'); dismiss('conflict');
  state.cursor = [Math.floor(image.width / 2), Math.floor(image.height / 2)];
  fit(); showFacts();
  await fetchFeatures(image, number);
}

function prepare(index, bitmap, runs, version) {
  const {width, height} = bitmap, canvas = new OffscreenCanvas(width, height), context = canvas.getContext('2d', {willReadFrequently: true});
  context.drawImage(bitmap, 0, 0);
  const data = context.getImageData(0, 0, width, height).data, size = width * height;
  return {index, bitmap, width, height, data, mask: decodeRuns(runs, new Uint8Array(size)), runs, version,
    region: new Uint8Array(size), undo: [], redo: [], saving: null, dirty: false, failed: '', feats: null};
}

async function fetchFeatures(target, number) {
  ui.wait.textContent = 'Preparing the region brush …';
  try {
    const reply = await ask(`/api/features/${target.index}`);
    target.feats = unpackFeatures(JSON.parse(reply.headers.get('X-Meta')), await reply.arrayBuffer());
    ui.source.textContent = `Regions from ${target.feats.source}.`;
    ui.note.textContent = target.feats.note;
  } catch (error) {
    banner(`No region brush for this image: ${error.message}`, 'bad', [], 'features');
  }
  if (number !== loading) return;
  ui.wait.textContent = '';
  request();
  const next = target.index + 1;
  if (next < folder.images.length && target.feats) ask(`/api/features/${next}`).catch(() => {});
}

const colorTable = () => {
  const table = new Uint32Array(256), bytes = new Uint8Array(table.buffer);
  folder.classes.forEach((c, id) => bytes.set([...c.color, 255], 4 * id));
  return table;
};

function labeledShare(runs, size) {
  let labeled = 0;
  for (const run of runs) if ((run & 255) !== IGNORE) labeled += Math.floor(run / 256);
  return labeled / size;
}

// ---- changes, undo, saving ----------------------------------------------------------------------------------

// Keep what was before, show what is now, and save it.
function commit() {
  const runs = encodeRuns(image.mask);
  if (runs.length === image.runs.length && runs.every((run, i) => run === image.runs[i])) return false;
  image.undo.push(image.runs);
  if (image.undo.length > MOST_STEPS) image.undo.shift();
  image.redo = [];
  changed(runs);
  return true;
}

function changed(runs) {
  image.runs = runs;
  folder.images[image.index].share = labeledShare(runs, image.width * image.height);
  save(image);
  drawLabels(); request(); showFacts();
}

function step(from, to) {
  if (!image || !image[from].length) return;
  image[to].push(image.runs);
  const runs = image[from].pop();
  decodeRuns(runs, image.mask);
  changed(runs);
  say(from === 'undo' ? 'undone' : 'done again');
}

function save(target) {
  target.dirty = true;
  if (!target.saving && !target.failed) target.saving = sendAll(target).finally(() => { target.saving = null; showSaved(); });
  showSaved();
}

async function sendAll(target) {
  while (target.dirty && !target.failed) {
    const runs = target.runs;
    target.dirty = false;
    try {
      const options = {method: 'PUT', body: runs, keepalive: runs.byteLength < KEEPALIVE, headers: {'If-Match': `"${target.version}"`}};
      target.version = (await (await ask(`/api/mask/${target.index}`, options)).json()).version;
      folder.problem = '';
      dismiss('problem');
    } catch (error) {
      target.dirty = true;
      target.failed = error.message;
      error.code === 409 ? offerVersions(target) : offerRetry(target);
    }
  }
}

function offerVersions(target) {
  banner(`Not saved: this mask was changed in another window or by another program.`, 'bad', [
    ['Load the other version', () => reload(target)], ['Overwrite it with mine', () => overwrite(target)]], 'conflict');
}

function offerRetry(target) {
  banner(`Not saved: ${target.failed}`, 'bad', [['Try again', () => { target.failed = ''; save(target); }], ['Discard my changes', () => reload(target)]], 'conflict');
}

async function reload(target) {
  try {
    const reply = await ask(`/api/mask/${target.index}`);
    target.version = versionOf(reply);
    target.runs = await runsOf(reply);
  } catch (error) {
    return banner(error.message, 'bad', [], 'image');
  }
  decodeRuns(target.runs, target.mask);
  Object.assign(target, {undo: [], redo: [], dirty: false, failed: ''});
  folder.images[target.index].share = labeledShare(target.runs, target.width * target.height);
  drawLabels(); request(); showFacts();
}

async function overwrite(target) {
  try {
    target.version = versionOf(await ask(`/api/mask/${target.index}`));
  } catch (error) {
    return banner(`Not saved: ${error.message}`, 'bad', [], 'conflict');
  }
  target.failed = '';
  save(target);
}

// Has everything of an image been saved? Otherwise say so and stay.
async function settled(target) {
  while (target.saving) await target.saving;
  if (!target.dirty) return true;
  target.failed.includes('another window') ? offerVersions(target) : offerRetry(target);
  return false;
}

// Another window may have gone on with this image.
async function lookAgain() {
  if (!image || document.hidden || image.dirty || image.saving) return;
  const target = image;
  try {
    const version = versionOf(await ask(`/api/mask/${target.index}`));
    if (version !== target.version && !target.dirty && !target.saving) {
      await reload(target);
      banner('This mask was changed elsewhere; the new version is shown.', 'info', [], 'elsewhere');
    }
  } catch (error) {
    if (error.code === 0) banner(error.message, 'bad', [], 'server');
  }
}

// ---- tools --------------------------------------------------------------------------------------------------

const free = i => !state.keep || image.mask[i] === IGNORE;

function setLine(id, keep) {
  return (left, right, y) => {
    for (let x = left, i = y * image.width + left; x <= right; x++, i++) if (!keep || image.mask[i] === IGNORE) image.mask[i] = id;
  };
}

function applyRegion([x, y]) {
  if (!image.feats) return say('the region brush is not ready');
  regionMap(image.feats, x, y, image, state.edges);
  const {region, mask} = image;
  let box = cutPixels(image.feats, image, state.cut, state.edges, region), part = region;
  if (state.connected) {
    part = new Uint8Array(region.length);
    box = region[y * image.width + x] ? fillFrom(region, image.width, image.height, x, y, part) : {size: 0, left: 0, right: -1, top: 0, bottom: -1};
  }
  for (let v = box.top; v <= box.bottom; v++) {
    for (let u = box.left, i = v * image.width + box.left; u <= box.right; u++, i++) if (part[i] && free(i)) mask[i] = state.classId;
  }
  const before = image.undo.length;
  if (!commit() || image.undo.length === before) return say('nothing changed');
  say(`${className(state.classId)}: region of ${percent(box.size / mask.length)}`);
}

function applyFill([x, y]) {
  const part = new Uint8Array(image.mask.length);
  fillFrom(image.mask, image.width, image.height, x, y, part);
  for (let i = 0; i < part.length; i++) if (part[i]) image.mask[i] = state.classId;
  commit();
}

function addPoint(point) {
  const first = points[0];
  if (points.length > 2 && Math.hypot(point[0] - first[0], point[1] - first[1]) * view.scale < 10 * view.ratio) return closePolygon();
  const last = points.at(-1);
  if (!last || last[0] !== point[0] || last[1] !== point[1]) points.push(point);
  request();
}

function closePolygon() {
  if (points.length > 2) {
    polygon(points, image.width, image.height, setLine(state.classId, state.keep));
    commit();
  }
  points = [];
  request();
}

const penId = () => state.tool === 'eraser' ? IGNORE : state.classId;

function paintStroke([x0, y0], [x1, y1]) {
  const r = state.radius, keep = state.keep && state.tool === 'brush';
  stroke(x0, y0, x1, y1, r, image.width, image.height, setLine(penId(), keep));
  drawLabels();
}

function apply(point) {
  if (!image) return;
  if (state.tool === 'region') applyRegion(point);
  else if (state.tool === 'fill') applyFill(point);
  else if (state.tool === 'polygon') addPoint(point);
  else if (state.tool !== 'hand') { paintStroke(point, point); commit(); }
}

async function acceptPrediction() {
  if (!image || !folder.model) return;
  const target = image;
  ui.wait.textContent = 'Asking the model …';
  try {
    const runs = await runsOf(await ask(`/api/prediction/${target.index}?tau=${state.tau}`));
    if (target !== image) return;
    const found = decodeRuns(runs, new Uint8Array(target.mask.length));
    for (let i = 0; i < found.length; i++) if (found[i] !== IGNORE && target.mask[i] === IGNORE) target.mask[i] = found[i];
    say(commit() ? 'the confident prediction was taken over' : 'nothing was unlabeled and confident');
  } catch (error) {
    banner(error.message, 'bad', [], 'prediction');
  }
  ui.wait.textContent = '';
}

// ---- drawing ------------------------------------------------------------------------------------------------

function resize() {
  if (!ui.stage) return;
  const box = ui.stage.getBoundingClientRect(), ratio = window.devicePixelRatio || 1, w = Math.max(1, Math.round(box.width * ratio)), h = Math.max(1, Math.round(box.height * ratio));
  if (ui.base.width === w && ui.base.height === h) return;
  const middle = [(ui.base.width / 2 - view.x) / view.scale, (ui.base.height / 2 - view.y) / view.scale], whole = view.whole;
  for (const canvas of [ui.base, ui.labels, ui.top]) { canvas.width = w; canvas.height = h; }
  view.ratio = ratio;
  if (whole || !image) return fit();
  view.x = w / 2 - middle[0] * view.scale; view.y = h / 2 - middle[1] * view.scale;
  drawBase(); request();
}

function fit() {
  if (image) {
    const {width: w, height: h} = ui.base;
    view.scale = Math.min(w / image.width, h / image.height) * .98;
    view.x = (w - image.width * view.scale) / 2; view.y = (h - image.height * view.scale) / 2;
    view.whole = true;
  }
  drawBase(); request();
}

function zoom(factor, at = [ui.base.width / 2, ui.base.height / 2]) {
  if (!image) return;
  const least = Math.min(ui.base.width / image.width, ui.base.height / image.height) * .5, scale = clamp(view.scale * factor, least, 40 * view.ratio);
  view.x = at[0] - (at[0] - view.x) * scale / view.scale; view.y = at[1] - (at[1] - view.y) * scale / view.scale;
  view.scale = scale; view.whole = false;
  drawBase(); request();
}

function pan(dx, dy) { view.x += dx; view.y += dy; view.whole = false; drawBase(); request(); }

// Runs a drawing function once with the next frame, however often it was asked for.
function once(draw) {
  let waiting = false;
  return () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; draw(); });
  };
}

const drawImage = once(() => {
  const context = ui.base.getContext('2d', {alpha: false});
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.fillStyle = getComputedStyle(ui.stage).backgroundColor;
  context.fillRect(0, 0, ui.base.width, ui.base.height);
  if (!image) return;
  context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
  context.imageSmoothingEnabled = view.scale < 3;
  context.drawImage(image.bitmap, 0, 0);
});

// The labels under the pixels of the screen: as many as the screen has, however large the image is.
const drawLabels = once(() => {
  const {width, height} = ui.labels, context = ui.labels.getContext('2d');
  if (!image) return context.clearRect(0, 0, width, height);
  if (view.patch?.width !== width || view.patch.height !== height) view.patch = new ImageData(width, height);
  const out = new Uint32Array(view.patch.data.buffer), columns = new Int32Array(width), {table} = folder, {mask} = image;
  for (let x = 0; x < width; x++) columns[x] = Math.floor((x + .5 - view.x) / view.scale);
  const first = columns.findIndex(x => x >= 0), end = columns.findLastIndex(x => x < image.width) + 1;
  out.fill(0);
  for (let y = 0; y < height && first >= 0; y++) {
    const v = Math.floor((y + .5 - view.y) / view.scale);
    if (v < 0 || v >= image.height) continue;
    for (let x = first, row = v * image.width, o = y * width; x < end; x++) out[o + x] = table[mask[row + columns[x]]];
  }
  context.putImageData(view.patch, 0, 0);
});

function drawBase() { drawImage(); drawLabels(); }

// Where following edges takes longer than a fluid frame has, edges are followed as soon as the pointer rests.
const FLUID = 24, REST = 90;  // ms
let asked = false, lastEvent = 0, moving = false, costs = 0, resting = 0;
function request(event) {
  if (event) { lastEvent = event.timeStamp; moving = true; }
  if (asked) return;
  asked = true;
  requestAnimationFrame(() => {
    asked = false;
    const edges = state.edges && !(moving && costs > FLUID);
    Object.assign(frame, {event: lastEvent, start: performance.now(), edges});
    drawTop(edges);
    frame.end = performance.now(); frame.count++;
    if (edges && state.tool === 'region') costs += .4 * (frame.end - frame.start - costs);
    clearTimeout(resting);
    if (edges !== state.edges) resting = setTimeout(() => { moving = false; request(); }, REST);
    moving = false;
  });
}

function drawTop(edges) {
  const context = ui.top.getContext('2d');
  context.setTransform(1, 0, 0, 1, 0, 0);
  context.clearRect(0, 0, ui.top.width, ui.top.height);
  if (!image || !state.cursor) return;
  if (state.tool === 'region') drawRegion(context, edges);
  const toScreen = ([x, y]) => [view.x + (x + .5) * view.scale, view.y + (y + .5) * view.scale];
  if (state.tool === 'brush' || state.tool === 'eraser') outline(context, () => context.arc(...toScreen(state.cursor), Math.max(1, state.radius * view.scale), 0, 2 * Math.PI));
  if (points.length) {
    outline(context, () => [...points, state.cursor].forEach((p, i) => i ? context.lineTo(...toScreen(p)) : context.moveTo(...toScreen(p))));
    for (const p of points) outline(context, () => context.arc(...toScreen(p), 4 * view.ratio, 0, 2 * Math.PI));
  }
  if (state.byKey) {
    const [x, y] = toScreen(state.cursor), r = 9 * view.ratio;
    outline(context, () => { context.moveTo(x - r, y); context.lineTo(x + r, y); context.moveTo(x, y - r); context.lineTo(x, y + r); });
  }
}

function outline(context, path) {
  for (const [style, width] of [['#000', 3.5], ['#fff', 1.6]]) {
    context.beginPath(); path();
    context.strokeStyle = style; context.lineWidth = width * view.ratio; context.stroke();
  }
}

function drawRegion(context, edges) {
  const {feats} = image;
  if (!feats) return;
  const {width, height} = feats, [x, y] = state.cursor, map = regionMap(feats, x, y, image, edges);
  feats.canvas ||= new OffscreenCanvas(width, height);
  feats.pixels ||= new ImageData(width, height);
  feats.inside ||= new Uint8Array(width * height);
  feats.nearX ||= Int32Array.from({length: width}, (_, u) => Math.round(u * (image.width - 1) / Math.max(1, width - 1)));
  feats.nearY ||= Int32Array.from({length: height}, (_, v) => Math.round(v * (image.height - 1) / Math.max(1, height - 1)) * image.width);
  let inside = feats.inside, size = 0;
  for (let i = 0; i < map.length; i++) inside[i] = map[i] > state.cut ? 1 : 0;
  if (state.connected) {
    const part = new Uint8Array(inside.length), u = Math.round(x * (width - 1) / Math.max(1, image.width - 1)), v = Math.round(y * (height - 1) / Math.max(1, image.height - 1));
    if (inside[v * width + u]) fillFrom(inside, width, height, u, v, part);
    inside = part;
  }
  if (state.keep) for (let v = 0, i = 0; v < height; v++) for (let u = 0; u < width; u++, i++) if (image.mask[feats.nearY[v] + feats.nearX[u]] !== IGNORE) inside[i] = 0;
  const out = new Uint32Array(feats.pixels.data.buffer), [r, g, b] = color(state.classId);
  const body = (150 << 24 | b << 16 | g << 8 | r) >>> 0, edge = 0xffffffff;
  for (let v = 0, i = 0; v < height; v++) {
    for (let u = 0; u < width; u++, i++) {
      if (!inside[i]) { out[i] = 0; continue; }
      size++;
      out[i] = u > 0 && !inside[i - 1] || u < width - 1 && !inside[i + 1] || v > 0 && !inside[i - width] || v < height - 1 && !inside[i + width] ? edge : body;
    }
  }
  feats.canvas.getContext('2d').putImageData(feats.pixels, 0, 0);
  const stepX = (image.width - 1) / Math.max(1, width - 1), stepY = (image.height - 1) / Math.max(1, height - 1);
  context.setTransform(view.scale, 0, 0, view.scale, view.x, view.y);
  context.imageSmoothingEnabled = stepX > 1;
  context.drawImage(feats.canvas, .5 - stepX / 2, .5 - stepY / 2, width * stepX, height * stepY);
  context.setTransform(1, 0, 0, 1, 0, 0);
  ui.size.textContent = `Region: ${percent(size / map.length)} of the image`;
}

// ---- what the panel shows -----------------------------------------------------------------------------------

function showSaved() {
  const target = image;
  const [text, kind] = folder.problem ? ['Not saved', 'bad'] : !target ? ['', ''] : target.failed ? ['Not saved', 'bad'] : target.saving || target.dirty ? ['Saving …', 'busy'] : target.version ? ['Saved', ''] : ['No mask yet', ''];
  ui.saved.textContent = text; ui.saved.dataset.state = kind;
}

function showFacts() {
  const {images} = folder, item = images[state.index], done = images.filter(i => i.share > 0).length;
  ui.name.textContent = item ? item.name : folder.folder;
  ui.name.title = item ? item.name : '';
  ui.count.textContent = `${state.index + 1} of ${images.length}`;
  ui.progress.value = done; ui.progress.max = images.length;
  ui.done.textContent = `${done} of ${images.length} images have labels; this one ${percent(item ? item.share : 0)}`;
  [...ui.list.options].forEach((option, i) => { option.textContent = `${i + 1}  ${images[i].name}  ${images[i].share ? percent(images[i].share) : ''}`; });
  ui.list.value = String(state.index);
  ui.previous.disabled = state.index === 0; ui.next.disabled = state.index >= images.length - 1;
  ui.undo.disabled = !image?.undo.length; ui.redo.disabled = !image?.redo.length;
  showSaved();
}

function showSettings() {
  for (const [name, button] of Object.entries(ui.tools)) button.setAttribute('aria-pressed', String(name === state.tool));
  ui.classes.forEach(([id, button]) => button.setAttribute('aria-pressed', String(id === state.classId)));
  ui.cut.show(state.cut, state.cut.toFixed(2)); ui.radius.show(Math.log(state.radius), `${Math.round(2 * state.radius)} px`);
  ui.opacity.show(state.opacity, percent(state.opacity)); ui.tau?.show(state.tau, state.tau.toFixed(2));
  for (const name of ['edges', 'connected', 'keep', 'shown']) ui[name].checked = state[name];
  ui.cut.node.hidden = state.tool !== 'region'; ui.radius.node.hidden = !['brush', 'eraser'].includes(state.tool);
  ui.labels.style.opacity = state.shown ? state.opacity : 0;
  ui.hint.textContent = TOOLS.find(t => t[0] === state.tool)[3];
}

function set(name, value) {
  if (name === 'tool' && value !== 'polygon') points = [];
  state[name] = value;
  showSettings();
  request();
  if (name === 'tool') say(`${value} tool`);
  if (name === 'classId') say(className(value));
}

function turn(sign) {
  if (state.tool === 'region') set('cut', clamp(Math.round((state.cut + sign * .02) * 100) / 100, .02, .98));
  else if (state.tool === 'brush' || state.tool === 'eraser') set('radius', clamp(state.radius * 1.15 ** sign, .5, 400));
}

// ---- the page -----------------------------------------------------------------------------------------------

let made = 0;
function slider(label, hint, min, max, stepSize, onInput) {
  const id = `s${++made}`, output = make('output', {for: id}), input = make('input', {type: 'range', id, min, max, step: stepSize, title: hint});
  input.addEventListener('input', () => onInput(Number(input.value)));
  return {node: make('div', {class: 'slider'}, make('label', {for: id, text: label, title: hint}), output, input),
    show: (value, text) => { input.value = value; output.textContent = text; input.setAttribute('aria-valuetext', text); }};
}

function check(name, label, key, hint) {
  const id = `s${++made}`, input = ui[name] = make('input', {type: 'checkbox', id});
  input.addEventListener('change', () => set(name, input.checked));
  return make('div', {class: 'check', title: hint}, input, make('label', {for: id, text: label}), make('kbd', {text: key}));
}

function button(label, key, hint, run) {
  const node = make('button', {type: 'button', title: hint}, make('span', {text: label}));
  if (key) node.append(make('kbd', {text: key, 'aria-hidden': 'true'}));
  node.addEventListener('click', run);
  return node;
}

const section = (title, ...children) => make('section', {'aria-label': title, class: title.toLowerCase().split(' ')[0]}, make('h2', {text: title}), ...children);

function classButton(id, key) {
  const dot = make('span', {class: id === IGNORE ? 'dot none' : 'dot'}), node = make('button', {type: 'button'}, dot, make('span', {class: 'name', text: className(id)}));
  if (id !== IGNORE) dot.style.background = `rgb(${color(id).join(',')})`;
  if (key !== '') node.append(make('kbd', {text: key, 'aria-hidden': 'true'}));
  node.addEventListener('click', () => set('classId', id));
  return [id, node];
}

function build(root) {
  const move = by => () => { const to = state.index + by; if (to >= 0 && to < folder.images.length) open(to); };
  Object.assign(ui, {
    name: make('h1'), count: make('span', {class: 'count'}), saved: make('span', {class: 'saved', role: 'status'}), banners: make('div', {class: 'banners'}),
    previous: button('Previous', ',', 'Previous image', move(-1)), next: button('Next', '.', 'Next image', move(1)),
    undo: button('Undo', 'Z', 'Undo the last change', () => step('undo', 'redo')), redo: button('Redo', '⇧Z', 'Do it again', () => step('redo', 'undo')),
    stage: make('div', {class: 'stage', tabindex: 0, role: 'application', 'aria-label': 'Image; arrow keys move the pointer, Space applies the tool, ? shows all keys'}),
    base: make('canvas', {'aria-hidden': 'true'}), labels: make('canvas', {'aria-hidden': 'true'}), top: make('canvas', {'aria-hidden': 'true'}), wait: make('div', {class: 'wait', role: 'status'}), live: make('div', {class: 'live', 'aria-live': 'polite'}),
    progress: make('progress', {'aria-label': 'Images with labels'}), done: make('p', {class: 'note'}), source: make('p', {class: 'note'}), note: make('p', {class: 'note'}),
    hint: make('p', {class: 'note'}), size: make('span'), list: make('select', {'aria-label': 'Image'}), help: helpDialog()});
  ui.tools = Object.fromEntries(TOOLS.map(([name, label, key, hint]) => [name, button(label, key, hint, () => set('tool', name))]));
  ui.classes = [...folder.classes.map((_, id) => classButton(id, id < 9 ? String(id + 1) : '')), classButton(IGNORE, '0')];
  ui.cut = slider('cut', 'Higher: a smaller region', .02, .98, .01, v => set('cut', v));
  ui.radius = slider('size of the brush', 'Diameter in pixels of the image', 0, Math.log(400), .01, v => set('radius', Math.exp(v)));
  ui.opacity = slider('opacity of the labels', 'How much the labels cover the image', 0, 1, .01, v => set('opacity', v));
  ui.list.append(...folder.images.map((_, i) => make('option', {value: i})));
  ui.list.addEventListener('change', () => open(Number(ui.list.value)));
  ui.stage.append(ui.base, ui.labels, ui.top, ui.wait);
  const sections = [
    section('Tool', make('div', {class: 'grid'}, ...Object.values(ui.tools)), ui.hint, ui.cut.node, ui.radius.node,
      check('edges', 'follow edges', 'G', 'Fit the region to the edges of the image'), check('connected', 'only the part around the pointer', 'C', 'Leave out parts that do not touch it'),
      check('keep', 'keep what is labeled', 'K', 'Give the class to unlabeled pixels alone')),
    section('Class', make('div', {class: 'classes'}, ...ui.classes.map(c => c[1]))), predictionSection(),
    section('View', ui.opacity.node, check('shown', 'show the labels', 'V', 'Show or hide all labels'),
      make('div', {class: 'grid'}, button('Zoom in', '+', 'Zoom in', () => zoom(1.4)), button('Zoom out', '−', 'Zoom out', () => zoom(1 / 1.4)), button('Whole image', 'W', 'Show the whole image', fit))),
    section('Folder', ui.list, ui.progress, ui.done, ui.source, ui.note)];
  root.replaceChildren(
    make('header', {}, ui.name, ui.count, ui.previous, ui.next, ui.undo, ui.redo, button('Help', '?', 'Show all keys', () => ui.help.showModal()), ui.saved, ui.banners),
    ui.stage, make('footer', {}, ui.size), make('aside', {class: 'side', 'aria-label': 'Tools and settings'}, ...sections.filter(Boolean)), ui.live, ui.help);
}

function predictionSection() {
  if (!folder.model) return null;
  ui.tau = slider('confidence from', 'Pixels with at least this confidence are taken', .5, 1, .01, v => set('tau', v));
  return section('Prediction of the model', ui.tau.node, button('Accept all confident', 'A', 'Label unlabeled pixels as the model predicts', acceptPrediction));
}

function helpDialog() {
  const close = make('button', {type: 'button', text: 'Close'}), list = make('dl', {}, ...KEYS.flatMap(([key, text]) => [make('dt', {text: key}), make('dd', {text})]));
  const dialog = make('dialog', {'aria-label': 'Keys'}, make('h2', {text: 'Keys'}), list, close);
  close.addEventListener('click', () => dialog.close());
  return dialog;
}

// ---- pointer, wheel, keys -----------------------------------------------------------------------------------

const pointers = new Map();
let mode = '', last = null, pinch = null;

const onCanvas = event => { const box = ui.stage.getBoundingClientRect(); return [(event.clientX - box.left) * view.ratio, (event.clientY - box.top) * view.ratio]; };
function pixelAt([x, y]) {
  return [clamp(Math.floor((x - view.x) / view.scale), 0, image.width - 1), clamp(Math.floor((y - view.y) / view.scale), 0, image.height - 1)];
}

function inImage([x, y]) {
  const u = (x - view.x) / view.scale, v = (y - view.y) / view.scale;
  return u >= 0 && v >= 0 && u < image.width && v < image.height;
}

function pointerDown(event) {
  if (!image) return;
  ui.stage.focus({preventScroll: true});
  event.preventDefault();
  ui.stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, onCanvas(event));
  if (pointers.size === 2) return startPinch();
  if (pointers.size > 2) return;
  last = onCanvas(event);
  state.cursor = pixelAt(last); state.byKey = false;
  mode = event.button === 1 || event.button === 2 || state.tool === 'hand' ? 'pan' : 'aim';
  if (mode === 'aim' && (state.tool === 'brush' || state.tool === 'eraser')) { mode = 'stroke'; paintStroke(state.cursor, state.cursor); }
  request(event);
}

function startPinch() {
  if (mode === 'stroke') { decodeRuns(image.runs, image.mask); drawLabels(); }
  mode = 'pinch'; pinch = measure();
}

function measure() {
  const [[ax, ay], [bx, by]] = [...pointers.values()];
  return {x: (ax + bx) / 2, y: (ay + by) / 2, length: Math.max(1, Math.hypot(ax - bx, ay - by))};
}

function pointerMove(event) {
  if (!image) return;
  const at = onCanvas(event);
  if (pointers.has(event.pointerId)) pointers.set(event.pointerId, at);
  if (mode === 'pinch' && pointers.size === 2) {
    const now = measure();
    pan(now.x - pinch.x, now.y - pinch.y); zoom(now.length / pinch.length, [now.x, now.y]);
    pinch = now;
    return;
  }
  if (mode === 'pan') { pan(at[0] - last[0], at[1] - last[1]); last = at; return; }
  const before = state.cursor;
  state.cursor = pixelAt(at); state.byKey = false;
  if (mode === 'stroke') paintStroke(before, state.cursor);
  request(event);
}

function pointerUp(event) {
  if (!pointers.delete(event.pointerId) || !image) return;
  const was = mode;
  if (!pointers.size) mode = '';
  if (was === 'stroke') commit();
  else if (was === 'aim' && event.type === 'pointerup' && inImage(onCanvas(event))) apply(state.cursor);
}

function wheel(event) {
  event.preventDefault();
  const sign = event.deltaY < 0 ? 1 : -1;
  if (event.ctrlKey || event.metaKey || event.shiftKey || ['polygon', 'fill', 'hand'].includes(state.tool)) zoom(1.15 ** (event.deltaY || event.deltaX) < 1 ? 1.15 : 1 / 1.15, onCanvas(event));
  else turn(sign);
}

function moveCursor(dx, dy, fine) {
  if (!image) return;
  const {feats} = image, w = image.width, h = image.height;
  const cell = feats ? [Math.max(1, w / feats.gridWidth), Math.max(1, h / feats.gridHeight)] : [Math.max(1, w / 60), Math.max(1, h / 60)];
  const by = fine ? [1, 1] : cell, before = state.cursor;
  state.cursor = [Math.round(clamp(before[0] + dx * by[0], 0, w - 1)), Math.round(clamp(before[1] + dy * by[1], 0, h - 1))];
  state.byKey = true;
  const [x, y] = [view.x + state.cursor[0] * view.scale, view.y + state.cursor[1] * view.scale], edge = 30 * view.ratio;
  const back = (v, size) => v < edge ? edge - v : v > size - edge ? size - edge - v : 0;
  if (!view.whole && (back(x, ui.base.width) || back(y, ui.base.height))) pan(back(x, ui.base.width), back(y, ui.base.height));
  request();
}

const ARROWS = {ArrowUp: [0, -1], ArrowDown: [0, 1], ArrowLeft: [-1, 0], ArrowRight: [1, 0]};

function keyDown(event) {
  if (ui.help.open || event.altKey) return;
  const onStage = document.activeElement === ui.stage, inField = ['SELECT', 'INPUT'].includes(document.activeElement?.tagName);
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  if (event.ctrlKey || event.metaKey) {
    if (key !== 'z' && key !== 'y') return;
    key === 'y' || event.shiftKey ? step('redo', 'undo') : step('undo', 'redo');
    return event.preventDefault();
  }
  if (onStage && onStageKey(key, event)) return event.preventDefault();
  if (inField && (document.activeElement.tagName === 'SELECT' || event.key.startsWith('Arrow') || key === ' ')) return;
  const tool = TOOLS.find(t => t[2].toLowerCase() === key);
  if (tool) set('tool', tool[0]);
  else if (/^[0-9]$/.test(key)) { if (key === '0') set('classId', IGNORE); else if (Number(key) <= folder.classes.length) set('classId', Number(key) - 1); }
  else if (SHORTCUTS[key]) SHORTCUTS[key](event);
  else return;
  event.preventDefault();
}

function onStageKey(key, event) {
  if (ARROWS[key]) moveCursor(...ARROWS[key], event.shiftKey);
  else if (!image) return false;
  else if (key === ' ') apply(state.cursor);
  else if (key === 'Enter') points.length ? closePolygon() : apply(state.cursor);
  else if (key === 'Backspace') { points.pop(); request(); }
  else if (key === 'Escape') { points = []; request(); }
  else return false;
  return true;
}

const toggle = name => () => set(name, !state[name]);
const SHORTCUTS = {
  '[': () => turn(-1), ']': () => turn(1), '+': () => zoom(1.4), '=': () => zoom(1.4), '-': () => zoom(1 / 1.4), w: fit, z: event => event.shiftKey ? step('redo', 'undo') : step('undo', 'redo'),
  y: () => step('redo', 'undo'), ',': () => ui.previous.click(), '.': () => ui.next.click(), PageUp: () => ui.previous.click(), PageDown: () => ui.next.click(),
  k: toggle('keep'), c: toggle('connected'), g: toggle('edges'), v: toggle('shown'), a: acceptPrediction, '?': () => ui.help.showModal()};

function listen() {
  ui.stage.addEventListener('pointerdown', pointerDown);
  ui.stage.addEventListener('pointermove', pointerMove);
  ui.stage.addEventListener('pointerup', pointerUp);
  ui.stage.addEventListener('pointercancel', pointerUp);
  ui.stage.addEventListener('dblclick', () => { if (state.tool === 'polygon') closePolygon(); });
  ui.stage.addEventListener('contextmenu', event => event.preventDefault());
  ui.stage.addEventListener('wheel', wheel, {passive: false});
  document.addEventListener('keydown', keyDown);
  window.addEventListener('focus', lookAgain);
  document.addEventListener('visibilitychange', lookAgain);
  window.addEventListener('beforeunload', event => { if (image && image.dirty) event.preventDefault(); });
  new ResizeObserver(resize).observe(ui.stage);
}

async function start() {
  const root = document.getElementById('label');
  try {
    folder = await (await ask('/api/folder')).json();
  } catch (error) {
    root.replaceChildren(make('p', {class: 'banner', text: error.message}));
    return;
  }
  folder.table = colorTable();
  document.title = `Label ${folder.folder}`;
  Object.assign(state, {cut: folder.cut, tau: folder.tau || .9, classId: folder.classes.length > 1 ? 1 : 0});
  build(root); listen(); showSettings(); resize();
  for (const line of folder.skipped) banner(`Skipped: ${line}`);
  if (folder.problem) banner(`Nothing will be saved. ${folder.problem}`, 'bad', [], 'problem');
  const first = folder.images.findIndex(item => item.share === 0);
  if (folder.images.length) await open(Math.max(0, first));
}

window.__label = {
  state, view, frame, set, get image() { return image; }, get folder() { return folder; }, get settled() { return !image || !image.dirty && !image.saving; },
  screen: (x, y) => { const box = ui.stage.getBoundingClientRect(); return [box.left + (view.x + (x + .5) * view.scale) / view.ratio, box.top + (view.y + (y + .5) * view.scale) / view.ratio]; },
  regionAt(x, y) { regionMap(image.feats, x, y, image, state.edges); const out = new Uint8Array(image.mask.length); cutPixels(image.feats, image, state.cut, state.edges, out); return encodeRuns(out); },
};
start();
