// The values of the analysis page: a block holds a byte for each unit and token, of one layer and direction. What can
// be computed from them: what each token put into a memory, and where the units are in a similar state.

const N = meta.tokens.length, H = meta.units, { memory } = meta;
const kinds = Object.fromEntries(meta.values.map(value => [value.name, value]));
const places = Array.from({ length: meta.layers * meta.directions }, (_, k) => ({ layer: Math.floor(k / meta.directions), direction: k % meta.directions }));
const starts = new Uint8Array(N + 1);  // 1 where a sequence begins, from a state of zeros
for (const t of [...meta.starts, N]) starts[t] = 1;
const first = (t, direction) => starts[direction ? t + 1 : t];  // is t the first token that is read?

// --- unpacking: each block once, when it is needed ---

const keep = make => { const made = new Map(); return key => made.get(key) ?? made.set(key, make(key)).get(key); };
const unpack = keep(async id => {
  const text = atob($(id).textContent), deflated = new Uint8Array(text.length);
  for (let k = 0; k < text.length; k++) deflated[k] = text.charCodeAt(k);
  const stream = new Blob([deflated]).stream().pipeThrough(new DecompressionStream("deflate-raw"));
  return new Uint8Array(await new Response(stream).arrayBuffer());
});
const KEPT = Float64Array.from({ length: 256 }, (_, k) => Math.exp(-k / memory.fineness));  // what a byte of the gate keeps
const WRITTEN = Float64Array.from({ length: 256 }, (_, k) => Math.sign(k - 128) * ((k - 128) / memory.steps) ** 2);
const largest = { ...meta.scales };  // of a memory, the largest size of what is written
const ready = new Map();  // what `block` has made

// A promise of the bytes that are shown: of a gate 255 · value, of a state 128 + 127 · value / scale
const block = keep(async key => {
  const [name, layer, direction] = key.split("-");
  let bytes;
  if (name === memory.gate) bytes = (await unpack(key)).map(k => Math.round(255 * (memory.complement ? 1 - KEPT[k] : KEPT[k])));
  else if (name === memory.name) bytes = sumWrites(await unpack(key), await unpack(`${memory.gate}-${layer}-${direction}`), key, +direction);
  else if (name === meta.derived) bytes = deriveHidden(await block(`o-${layer}-${direction}`), await block(`c-${layer}-${direction}`), key);
  else bytes = await unpack(key);
  ready.set(key, bytes);
  return bytes;
});
function sumWrites(writes, gates, key, direction) {  // m' = r ⊙ m + w from zeros on
  const bytes = new Uint8Array(N * H), values = new Float32Array(N);
  meta.scales[key] = largest[key].map((most, unit) => {
    let m = 0, scale = memory.name === "c" ? 1e-6 : 1;
    for (let k = 0; k < N; k++) {
      const t = direction ? N - 1 - k : k, at = unit * N + t;
      m = values[t] = (first(t, direction) ? 0 : KEPT[gates[at]] * m) + most * WRITTEN[writes[at]];
      scale = Math.max(scale, Math.abs(m));
    }
    for (let t = 0; t < N; t++) bytes[unit * N + t] = Math.round(128 + 127 * values[t] / scale);
    return scale;
  });
  return bytes;
}
function deriveHidden(o, c, key) {  // h = o ⊙ tanh(c)
  const bytes = new Uint8Array(N * H), cells = meta.scales[key.replace("h", "c")];
  meta.scales[key] = cells.map((scale, unit) => {
    const squashed = Float64Array.from({ length: 256 }, (_, b) => 127 / 255 * Math.tanh((b - 128) / 127 * scale));
    for (let at = unit * N; at < (unit + 1) * N; at++) bytes[at] = Math.round(128 + o[at] * squashed[c[at]]);
    return 1;
  });
  return bytes;
}
const series = (bytes, unit) => bytes.subarray(unit * N, (unit + 1) * N);
const number = (key, unit, t) => {  // the value at token t, if its block is ready
  const bytes = ready.get(key), byte = bytes?.[unit * N + t];
  return bytes && (kinds[key.split("-")[0]].gate ? byte / 255 : (byte - 128) / 127 * meta.scales[key][unit]);
};

// --- the parts of a memory: m_T = Σ_s (r_{s+1} ⊙ … ⊙ r_T) ⊙ w_s, exactly ---

async function attribute(layer, direction, unit, T) {  // → of each token what it wrote, and which share is left; of others 0
  const ending = `${layer}-${direction}`, [gates, writes] = await Promise.all([unpack(`${memory.gate}-${ending}`), unpack(`${memory.name}-${ending}`)]);
  const written = new Float64Array(N), left = new Float64Array(N), most = largest[`${memory.name}-${ending}`][unit];
  for (let t = T, share = 1; t >= 0 && t < N; t += direction ? 1 : -1) {
    written[t] = most * WRITTEN[writes[unit * N + t]];
    left[t] = share;
    share *= KEPT[gates[unit * N + t]];
    if (first(t, direction)) break;
  }
  return { written, left, parts: written.map((w, t) => w * left[t]) };
}

// --- similar states: as in LSTMVis (Strobelt et al. 2018) the places where the same units are on; and the nearest h ---

const hidden = () => Promise.all(places.map(({ layer, direction }) => block(`h-${layer}-${direction}`)));
let norms = null;  // Σ h² at each token
function addProducts(into, bytes, scales, at) {  // Σ_u h_u · q_u for all tokens; q: the h at token `at`, or each token's own
  for (let unit = 0; unit < H; unit++) {
    const values = series(bytes, unit), scale = (scales[unit] / 127) ** 2, q = scale * (values[at] - 128);
    if (at === undefined) for (let t = 0; t < N; t++) into[t] += scale * (values[t] - 128) ** 2;
    else if (q) for (let t = 0; t < N; t++) into[t] += q * (values[t] - 128);
  }
}
async function findSimilar(from, to, threshold) {  // a stretch of tokens, both ends in it
  const blocks = await hidden(), length = to - from + 1, scales = places.map(({ layer, direction }) => meta.scales[`h-${layer}-${direction}`]);
  const counts = new Uint16Array(N), on = [];  // counts: how many of the units are on all through the stretch that ends there
  blocks.forEach((bytes, k) => {
    for (let unit = 0; unit < H; unit++) {
      const values = series(bytes, unit), sign = values[from] < 128 ? -1 : 1, least = threshold * 127 / scales[k][unit];
      const isOn = t => sign * (values[t] - 128) >= least;
      let all = true;
      for (let t = from; t <= to && all; t++) all = isOn(t);
      if (!all) continue;
      let run = 0, total = 0;
      for (let t = 0; t < N; t++) {
        run = isOn(t) ? (starts[t] ? 1 : run + 1) : 0;
        total += run > 0;
        counts[t] += run >= length;
      }
      on.push({ ...places[k], unit, share: total / N });
    }
  });
  if (!norms) blocks.forEach((bytes, k) => addProducts(norms ??= new Float64Array(N), bytes, scales[k]));
  const cosines = new Float64Array(N);
  blocks.forEach((bytes, k) => addProducts(cosines, bytes, scales[k], to));
  for (let t = 0; t < N; t++) cosines[t] /= Math.sqrt(norms[t] * norms[to]) || 1;
  return {
    on: on.sort((a, b) => a.share - b.share),
    same: best(t => counts[t] + cosines[t] / 2, from, to).filter(t => counts[t]).map(t => [t, counts[t]]),
    near: best(t => cosines[t], from, to).map(t => [t, cosines[t]]),
  };
}
function best(score, from, to, most = 12) {  // the last tokens of the best stretches of that length, which do not overlap
  const length = to - from + 1, apart = Math.max(length, 5), scores = Float64Array.from({ length: N }, (_, t) => t < length - 1 || Math.abs(t - to) < apart ? -Infinity : score(t));
  const found = [];
  while (found.length < most) {
    const t = scores.reduce((best, s, t) => s > scores[best] ? t : best, 0);
    if (scores[t] === -Infinity) break;
    found.push(t);
    scores.fill(-Infinity, Math.max(0, t - apart + 1), t + apart);
  }
  return found;
}
