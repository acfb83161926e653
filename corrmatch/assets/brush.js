// What the label page computes, without a page: runs of a mask, rows and regions of the correlation map, shapes.
// The region repeats brush_region of corrmatch/use/label.py.
import {taps, toGrid} from './explore.js';

export const IGNORE = 255;
const LONGEST = 2 ** 24 - 1;  // pixels of a run

// ---- masks on the wire --------------------------------------------------------------------------------------

export function encodeRuns(mask) {
  let runs = new Uint32Array(4096), count = 0;
  for (let start = 0; start < mask.length;) {
    const id = mask[start];
    let end = start + 1;
    while (end < mask.length && mask[end] === id && end - start < LONGEST) end++;
    if (count === runs.length) { const wider = new Uint32Array(2 * count); wider.set(runs); runs = wider; }
    runs[count++] = (end - start) * 256 + id;
    start = end;
  }
  return runs.slice(0, count);
}

export function decodeRuns(runs, mask) {
  let start = 0;
  for (const run of runs) {
    const end = start + Math.floor(run / 256);
    mask.fill(run & 255, start, end);
    start = end;
  }
  return mask;
}

// ---- features and rows --------------------------------------------------------------------------------------

export function unpackFeatures(meta, buffer) {
  const [gridHeight, gridWidth] = meta.grid, [height, width] = meta.work, n = gridHeight * gridWidth, k = meta.channels;
  let at = 0;
  const take = (Kind, length) => { const part = new Kind(buffer, at, length); at += part.byteLength; return part; };
  const scales = Array.from({length: meta.sides}, () => take(Float32Array, n));
  const sides = Array.from({length: meta.sides}, () => take(Int8Array, n * k));
  const colors = take(Uint8Array, height * width * 3);
  const feats = {gridHeight, gridWidth, n, k, scales, sides, width, height, source: meta.source, note: meta.note,
    wide: new Float32Array(gridHeight * width), tapsX: taps(gridWidth, width), tapsY: taps(gridHeight, height)};
  return Object.assign(feats, {guide: prepareGuide(colors, width, height, meta.radius, meta.eps), row: new Float32Array(n)});
}

// Row p of the map, moved to the range 0..1.
export function rowAt(feats, p) {
  const {n, k, row} = feats, query = feats.sides[0], keys = feats.sides[feats.sides.length - 1];
  const scales = feats.scales[feats.scales.length - 1], scale = feats.scales[0][p] / Math.sqrt(k), start = p * k;
  let top = -Infinity, low = Infinity;
  for (let j = 0; j < n; j++) {
    let sum = 0;
    for (let c = 0, at = j * k; c < k; c++) sum += query[start + c] * keys[at + c];
    row[j] = sum * scale * scales[j];
    if (row[j] > top) top = row[j];
    if (row[j] < low) low = row[j];
  }
  const least = Math.exp(low - top), span = Math.max(1 - least, 1e-30);
  for (let j = 0; j < n; j++) row[j] = (Math.exp(row[j] - top) - least) / span;
  return row;
}

// Bilinear with aligned corners, along x then along y.
function enlarge(map, feats, fine) {
  const {gridHeight, gridWidth, width, height, wide, tapsX: tx, tapsY: ty} = feats;
  for (let y = 0; y < gridHeight; y++) {
    for (let x = 0; x < width; x++) wide[y * width + x] = map[y * gridWidth + tx.near[x]] * tx.wNear[x] + map[y * gridWidth + tx.far[x]] * tx.wFar[x];
  }
  for (let y = 0; y < height; y++) {
    const above = ty.near[y] * width, below = ty.far[y] * width, a = ty.wNear[y], b = ty.wFar[y];
    for (let x = 0; x < width; x++) fine[y * width + x] = wide[above + x] * a + wide[below + x] * b;
  }
  return fine;
}

// ---- following edges: a guided filter -----------------------------------------------------------------------

// Mean over windows of 2*radius+1 pixels; at the border over what is there.
export function windowMean(source, width, height, radius, target, buffer) {
  const count = (i, size) => Math.min(i + radius, size - 1) - Math.max(i - radius, 0) + 1;
  const share = Float64Array.from({length: width}, (_, x) => 1 / count(x, width)), sums = new Float64Array(width);
  for (let y = 0; y < height; y++) {
    const start = y * width, first = Math.min(radius, width), inner = Math.max(0, Math.min(width - radius, width));
    let sum = 0, x = 0;
    for (let i = 0; i < first; i++) sum += source[start + i];
    for (; x < Math.min(inner, radius + 1); x++) { sum += source[start + x + radius]; buffer[start + x] = sum * share[x]; }
    for (; x < inner; x++) { sum += source[start + x + radius] - source[start + x - radius - 1]; buffer[start + x] = sum * share[x]; }
    for (; x < width; x++) { if (x > radius) sum -= source[start + x - radius - 1]; buffer[start + x] = sum * share[x]; }
  }
  for (let i = 0, end = Math.min(radius, height) * width; i < end;) for (let x = 0; x < width; x++, i++) sums[x] += buffer[i];
  for (let y = 0; y < height; y++) {
    const start = y * width, part = 1 / count(y, height), next = start + radius * width, gone = start - (radius + 1) * width;
    if (y + radius < height && y > radius) for (let x = 0; x < width; x++) { sums[x] += buffer[next + x] - buffer[gone + x]; target[start + x] = sums[x] * part; }
    else {
      if (y + radius < height) for (let x = 0; x < width; x++) sums[x] += buffer[next + x];
      if (y > radius) for (let x = 0; x < width; x++) sums[x] -= buffer[gone + x];
      for (let x = 0; x < width; x++) target[start + x] = sums[x] * part;
    }
  }
  return target;
}

// Returns a function that gives arrays of one buffer, each beginning at another place in a page of memory: arrays that
// all begin at the start of a page push each other out of the cache when they are read side by side.
function pool(count, size) {
  const stride = size + 80 - size % 16, buffer = new Float32Array(count * stride);
  let at = -stride;
  return () => buffer.subarray(at += stride, at + size);
}

// Means and inverse covariances of the colours in every window: they are the same for every row.
function prepareGuide(colors, width, height, radius, eps) {
  const size = width * height, make = pool(32, size), buffer = make();
  const planes = [0, 1, 2].map(c => { const plane = make(); for (let i = 0; i < size; i++) plane[i] = colors[3 * i + c] / 255; return plane; });
  const mean = values => windowMean(values, width, height, radius, make(), buffer);
  const means = planes.map(mean), inverse = Array.from({length: 6}, make), product = make(), pairs = [[0, 0], [0, 1], [0, 2], [1, 1], [1, 2], [2, 2]];
  const spread = pairs.map(([a, b]) => {
    for (let i = 0; i < size; i++) product[i] = planes[a][i] * planes[b][i];
    const cross = mean(product);
    for (let i = 0; i < size; i++) cross[i] += (a === b ? eps : 0) - means[a][i] * means[b][i];
    return cross;
  });
  for (let i = 0; i < size; i++) {
    const [xx, xy, xz, yy, yz, zz] = spread.map(s => s[i]), cxx = yy * zz - yz * yz, cxy = xz * yz - xy * zz, cxz = xy * yz - xz * yy;
    const det = xx * cxx + xy * cxy + xz * cxz;
    [cxx, cxy, cxz, xx * zz - xz * xz, xy * xz - xx * yz, xx * yy - xy * xy].forEach((v, j) => { inverse[j][i] = v / det; });
  }
  return {planes, means, inverse, radius, buffer, product, slopes: [make(), make(), make()], offset: make(), rowMean: make(), shared: [make(), make(), make()]};
}

// Slopes and offset of every window, averaged; `fine` is the row at the size of the working image.
function fitColors(fine, feats) {
  const {width, height, guide: g} = feats, size = width * height, mean = (values, target) => windowMean(values, width, height, g.radius, target, g.buffer);
  mean(fine, g.rowMean);
  for (let c = 0; c < 3; c++) {
    const plane = g.planes[c], means = g.means[c], shared = g.shared[c];
    for (let i = 0; i < size; i++) g.product[i] = plane[i] * fine[i];
    mean(g.product, shared);
    for (let i = 0; i < size; i++) shared[i] -= means[i] * g.rowMean[i];
  }
  const [sx, sy, sz] = g.shared, [mx, my, mz] = g.means, [xx, xy, xz, yy, yz, zz] = g.inverse;
  for (let i = 0; i < size; i++) {
    const x = sx[i], y = sy[i], z = sz[i], a = xx[i] * x + xy[i] * y + xz[i] * z, b = xy[i] * x + yy[i] * y + yz[i] * z, c = xz[i] * x + yz[i] * y + zz[i] * z;
    g.product[i] = g.rowMean[i] - a * mx[i] - b * my[i] - c * mz[i];
    sx[i] = a; sy[i] = b; sz[i] = c;
  }
  for (let c = 0; c < 3; c++) mean(g.shared[c], g.slopes[c]);
  mean(g.product, g.offset);
}

// ---- regions ------------------------------------------------------------------------------------------------

// The row under a pixel of the image (x, y of imageWidth x imageHeight), at the size of the working image.
export function regionMap(feats, x, y, image, followEdges) {
  const p = toGrid(y, image.height, feats.gridHeight) * feats.gridWidth + toGrid(x, image.width, feats.gridWidth);
  feats.fine ||= new Float32Array(feats.width * feats.height);
  feats.map ||= new Float32Array(feats.width * feats.height);
  enlarge(rowAt(feats, p), feats, feats.fine);
  if (!followEdges) { feats.map.set(feats.fine); return feats.map; }
  fitColors(feats.fine, feats);
  const {planes: [r, g, b], slopes: [u, v, w], offset} = feats.guide;
  for (let i = 0; i < feats.map.length; i++) feats.map[i] = u[i] * r[i] + v[i] * g[i] + w[i] * b[i] + offset[i];
  return feats.map;
}

// After regionMap: the region of pixels of the image, its bounding box and size.
export function cutPixels(feats, image, cut, followEdges, region) {
  const {width: w, height: h} = image, ty = taps(feats.height, h), box = {left: w, top: h, right: -1, bottom: -1, size: 0};
  const maps = followEdges ? [...feats.guide.slopes, feats.guide.offset] : [feats.fine], lines = maps.map(() => new Float32Array(feats.width));
  const tx = taps(feats.width, w), level = followEdges ? 255 * cut : cut;
  for (let y = 0; y < h; y++) {
    const above = ty.near[y] * feats.width, below = ty.far[y] * feats.width, a = ty.wNear[y], b = ty.wFar[y];
    for (let m = 0; m < maps.length; m++) {
      const map = maps[m], line = lines[m], factor = m === 3 ? 255 : 1;
      for (let x = 0; x < line.length; x++) line[x] = factor * (map[above + x] * a + map[below + x] * b);
    }
    const size = followEdges ? cutColors(lines, tx, image.data, y * w, w, level, region, box) : cutLine(lines[0], tx, y * w, w, level, region, box);
    if (!size) continue;
    box.size += size; box.top = Math.min(box.top, y); box.bottom = y;
  }
  return box;
}

function cutLine(line, {near, far, wNear, wFar}, start, w, level, region, box) {
  let size = 0, left = w, right = -1;
  for (let x = 0; x < w; x++) {
    const inside = line[near[x]] * wNear[x] + line[far[x]] * wFar[x] > level;
    region[start + x] = inside ? 1 : 0;
    if (inside) { size++; right = x; if (left === w) left = x; }
  }
  box.left = Math.min(box.left, left); box.right = Math.max(box.right, right);
  return size;
}

function cutColors([r, g, b, offset], {near, far, wNear, wFar}, data, start, w, level, region, box) {
  let size = 0, left = w, right = -1;
  for (let x = 0, i = 4 * start; x < w; x++, i += 4) {
    const p = near[x], q = far[x], u = wNear[x], v = wFar[x], red = data[i], green = data[i + 1], blue = data[i + 2];
    const inside = u * (r[p] * red + g[p] * green + b[p] * blue + offset[p]) + v * (r[q] * red + g[q] * green + b[q] * blue + offset[q]) > level;
    region[start + x] = inside ? 1 : 0;
    if (inside) { size++; right = x; if (left === w) left = x; }
  }
  box.left = Math.min(box.left, left); box.right = Math.max(box.right, right);
  return size;
}

export function grow(box, x, y) {
  if (x < box.left) box.left = x;
  if (x > box.right) box.right = x;
  if (y < box.top) box.top = y;
  if (y > box.bottom) box.bottom = y;
  box.size++;
}

// The part of an array around (x, y) whose values equal the value there: line by line, as 1 in `part`.
export function fillFrom(values, width, height, x, y, part) {
  const wanted = values[y * width + x], box = {left: width, top: height, right: -1, bottom: -1, size: 0}, todo = [y * width + x];
  while (todo.length) {
    const start = todo.pop();
    if (part[start] || values[start] !== wanted) continue;
    const row = Math.floor(start / width), first = row * width;
    let left = start, right = start;
    while (left > first && values[left - 1] === wanted && !part[left - 1]) left--;
    while (right < first + width - 1 && values[right + 1] === wanted && !part[right + 1]) right++;
    for (let i = left; i <= right; i++) {
      part[i] = 1;
      grow(box, i - first, row);
      if (row > 0 && values[i - width] === wanted && !part[i - width] && (i === left || values[i - width - 1] !== wanted || part[i - width - 1])) todo.push(i - width);
      if (row < height - 1 && values[i + width] === wanted && !part[i + width] && (i === left || values[i + width - 1] !== wanted || part[i + width - 1])) todo.push(i + width);
    }
  }
  return box;
}

// ---- shapes -------------------------------------------------------------------------------------------------

// Calls set(left, right, y) for the lines of a thick stroke between two points.
export function stroke(x0, y0, x1, y1, radius, width, height, set) {
  const dx = x1 - x0, dy = y1 - y0, length = dx * dx + dy * dy, top = Math.max(0, Math.ceil(Math.min(y0, y1) - radius)), bottom = Math.min(height - 1, Math.floor(Math.max(y0, y1) + radius));
  const firstX = Math.max(0, Math.ceil(Math.min(x0, x1) - radius)), lastX = Math.min(width - 1, Math.floor(Math.max(x0, x1) + radius));
  for (let y = top; y <= bottom; y++) {
    let left = -1, right = -1;
    for (let x = firstX; x <= lastX; x++) {
      const t = length ? Math.min(1, Math.max(0, ((x - x0) * dx + (y - y0) * dy) / length)) : 0;
      const off = (x - x0 - t * dx) ** 2 + (y - y0 - t * dy) ** 2;
      if (off <= radius * radius) { if (left < 0) left = x; right = x; }
    }
    if (left >= 0) set(left, right, y);
  }
}

// Calls set(left, right, y) for the lines inside of a polygon [[x, y], ...], by the rule of even and odd.
export function polygon(points, width, height, set) {
  const ys = points.map(p => p[1]), top = Math.max(0, Math.ceil(Math.min(...ys))), bottom = Math.min(height - 1, Math.floor(Math.max(...ys)));
  for (let y = top; y <= bottom; y++) {
    const cuts = [];
    points.forEach(([x0, y0], i) => {
      const [x1, y1] = points[(i + 1) % points.length];
      if ((y0 <= y) !== (y1 <= y)) cuts.push(x0 + (y - y0) / (y1 - y0) * (x1 - x0));
    });
    cuts.sort((a, b) => a - b);
    for (let i = 0; i + 1 < cuts.length; i += 2) {
      const left = Math.max(0, Math.ceil(cuts[i])), right = Math.min(width - 1, Math.floor(cuts[i + 1]));
      if (left <= right) set(left, right, y);
    }
  }
}
