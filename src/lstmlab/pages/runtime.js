// The numbers: weights, products of matrices and vectors, the recurrence, drawing, and the check at the start.

function unpackWeights(base64, layout, rows) {  // {name: {values, shape}}; layout: {name: [first value, first row, ...shape]}
  const text = atob(base64), bytes = new Uint8Array(text.length);
  for (let k = 0; k < bytes.length; k++) bytes[k] = text.charCodeAt(k);
  const scales = new Float32Array(bytes.buffer, 0, rows), whole = new Int16Array(bytes.buffer, 4 * rows);
  return Object.fromEntries(Object.entries(layout).map(([name, [start, row, ...shape]]) => {
    const width = shape.at(-1), values = new Float32Array(shape.reduce((a, b) => a * b));
    for (let k = 0; k < values.length; k++) values[k] = scales[row + Math.floor(k / width)] * whole[start + k];
    return [name, { values, shape }];
  }));
}
const weights = unpackWeights($("weights").textContent, meta.layout, meta.rows);

class Linear {
  // W x + b. W lies in blocks of eight rows, column by column: eight sums then share each x[k] and read
  // memory in order, which is twice as fast as row by row.
  constructor(weight, ...biases) {
    const [rows, columns] = weight.shape;
    Object.assign(this, { rows, columns, padded: 8 * Math.ceil(rows / 8) });
    this.blocks = new Float32Array(this.padded * columns);
    this.bias = new Float64Array(this.padded);
    for (let r = 0; r < rows; r++) {
      const start = (r >> 3) * 8 * columns + (r & 7);
      for (let k = 0; k < columns; k++) this.blocks[start + 8 * k] = weight.values[r * columns + k];
      for (const bias of biases) this.bias[r] += bias.values[r];
    }
  }
  of(x, out = new Float64Array(this.padded)) {  // out is as long as the padded rows, those behind `rows` are 0
    const { blocks, bias, padded, columns } = this;
    for (let r = 0, p = 0; r < padded; r += 8) {
      let s0 = 0, s1 = 0, s2 = 0, s3 = 0, s4 = 0, s5 = 0, s6 = 0, s7 = 0;
      for (let k = 0; k < columns; k++, p += 8) {
        const v = x[k];
        s0 += blocks[p] * v; s1 += blocks[p + 1] * v; s2 += blocks[p + 2] * v; s3 += blocks[p + 3] * v;
        s4 += blocks[p + 4] * v; s5 += blocks[p + 5] * v; s6 += blocks[p + 6] * v; s7 += blocks[p + 7] * v;
      }
      out[r] = s0 + bias[r]; out[r + 1] = s1 + bias[r + 1]; out[r + 2] = s2 + bias[r + 2]; out[r + 3] = s3 + bias[r + 3];
      out[r + 4] = s4 + bias[r + 4]; out[r + 5] = s5 + bias[r + 5]; out[r + 6] = s6 + bias[r + 6]; out[r + 7] = s7 + bias[r + 7];
    }
    return out;
  }
}
const linear = (weights, name) =>
  new Linear(weights[`${name}.weight`], ...(weights[`${name}.bias`] ? [weights[`${name}.bias`]] : []));

const sigmoid = x => 1 / (1 + Math.exp(-x));
function softmax(scores, count = scores.length) {
  let largest = -Infinity, sum = 0;
  for (let k = 0; k < count; k++) largest = Math.max(largest, scores[k]);
  const p = new Float64Array(count);
  for (let k = 0; k < count; k++) sum += p[k] = Math.exp(scores[k] - largest);
  for (let k = 0; k < count; k++) p[k] /= sum;
  return p;
}
const argmax = values => values.reduce((best, v, k) => v > values[best] ? k : best, 0);
const concatenate = parts => { const all = new Float64Array(parts.reduce((n, p) => n + p.length, 0)); let at = 0; for (const p of parts) { all.set(p, at); at += p.length; } return all; };

// One step: a = W_ih x + b and r = W_hh h, with gates in the order of nn.LSTM, nn.GRU and nn.RNN; the state
// changes in place. Cell state `held` of an LSTM has the value `to`, whatever its gates say. With layer norm, `gain` and
// `bias` come after it, so that a and r have none.
const STEPS = {
  lstm(a, r, state, H, held, to) {
    for (let k = 0; k < 4 * H; k++) r[k] += a[k];
    applyGates(r, state, H, held, to);
  },
  layernorm(a, r, state, H, held, to, gain, bias) {
    for (let gate = 0; gate < 4 * H; gate += H) {
      let sum = 0, squares = 0;
      for (let k = gate; k < gate + H; k++) sum += r[k] += a[k];
      for (let k = gate; k < gate + H; k++) squares += (r[k] - sum / H) ** 2;
      const deviation = Math.sqrt(squares / H + 1e-5);
      for (let k = gate; k < gate + H; k++) r[k] = gain[k] * (r[k] - sum / H) / deviation + bias[k];
    }
    applyGates(r, state, H, held, to);
  },
  gru(a, r, { h }, H) {
    for (let u = 0; u < H; u++) {
      const reset = sigmoid(a[u] + r[u]), z = sigmoid(a[H + u] + r[H + u]);
      const n = Math.tanh(a[2 * H + u] + reset * r[2 * H + u]);
      h[u] = (1 - z) * n + z * h[u];
    }
  },
  rnn(a, r, { h }, H) {
    for (let u = 0; u < H; u++) h[u] = Math.tanh(a[u] + r[u]);
  },
};

const members = { lstm: ["h", "c"], layernorm: ["h", "c"], gru: ["h"], rnn: ["h"] }[meta.kind];  // of the state

function applyGates(s, { h, c }, H, held, to) {  // s: what goes into the gates i, f, g and o
  for (let u = 0; u < H; u++) {
    const i = sigmoid(s[u]), f = sigmoid(s[H + u]), g = Math.tanh(s[2 * H + u]), o = sigmoid(s[3 * H + u]);
    c[u] = u === held ? to : f * c[u] + i * g;
    h[u] = o * Math.tanh(c[u]);
  }
}

class Cell {  // one layer in one direction
  constructor(weights, name, ending, kind) {
    const of = part => weights[`${name}.${part}_${ending}`];
    const gain = of("gain"), unlessNormed = bias => gain ? [] : [bias];
    this.hidden = new Linear(of("weight_hh"), ...unlessNormed(of("bias_hh")));
    this.input = new Linear(of("weight_ih"), ...unlessNormed(of("bias_ih")));
    if (gain) Object.assign(this, { gain: gain.values, bias: of("bias_ih").values.map((v, k) => v + of("bias_hh").values[k]) });
    this.H = of("weight_hh").shape[1];
    Object.assign(this, { advance: STEPS[kind], known: new Map(), recurrent: new Float64Array(this.hidden.padded) });
  }
  start() { return Object.fromEntries(members.map(name => [name, new Float64Array(this.H)])); }
  step(a, state, clamp) {  // clamp: {member: "h" or "c", unit, value} or nothing
    const r = this.hidden.of(state.h, this.recurrent), held = clamp?.member === "c" ? clamp.unit : -1;
    this.advance(a, r, state, this.H, held, clamp?.value, this.gain, this.bias);
    if (clamp?.member === "h") state.h[clamp.unit] = clamp.value;
  }
}
const copyState = state => Object.fromEntries(Object.entries(state).map(([name, values]) => [name, values.slice()]));

class Stack {  // layers of cells; `embed` makes a vector of an id, and an id may stand for its vector
  constructor(weights, name, kind, embed) {
    this.embed = embed;
    this.layers = [];
    for (let l = 0; weights[`${name}.weight_ih_l${l}`]; l++) {
      const endings = [`l${l}`, `l${l}_reverse`].filter(ending => weights[`${name}.weight_ih_${ending}`]);
      this.layers.push(endings.map(ending => new Cell(weights, name, ending, kind)));
    }
  }
  read(cell, x) {  // W_ih x + b; that of an id is computed once
    if (typeof x !== "number") return cell.input.of(x);
    if (!cell.known.has(x)) cell.known.set(x, cell.input.of(this.embed(x)));
    return cell.known.get(x);
  }
  start() { return this.layers.map(([cell]) => cell.start()); }
  step(x, states, clamp) {  // one step forwards → h of the last layer
    this.layers.forEach(([cell], layer) => {
      cell.step(this.read(cell, x), states[layer], clamp?.layer === layer ? clamp : null);
      x = states[layer].h;
    });
    return x;
  }
  run(xs) {  // a sequence in all directions → outputs (T, D·H), final states (L·D), all states (L·D, T)
    const traces = [];
    for (const layer of this.layers) {
      const directions = layer.map((cell, direction) => {
        const state = cell.start(), trace = new Array(xs.length);
        for (let k = 0; k < xs.length; k++) {
          const t = direction ? xs.length - 1 - k : k;
          cell.step(this.read(cell, xs[t]), state);
          trace[t] = copyState(state);
        }
        return trace;
      });
      xs = xs.map((_, t) => directions.length > 1 ? concatenate(directions.map(trace => trace[t].h)) : directions[0][t].h);
      traces.push(...directions);
    }
    const D = this.layers[0].length;
    return { outputs: xs, traces, states: traces.map((trace, k) => trace[k % D ? 0 : trace.length - 1]) };
  }
}
const embedding = ({ values, shape: [, E] }, scale = 1) =>
  id => Float64Array.from(values.subarray(id * E, (id + 1) * E), v => scale * v);

function* dice(seed) {  // numbers from 0 to 1, the same ones for a seed (mulberry32)
  for (;;) {
    seed = seed + 0x6d2b79f5 | 0;
    let t = Math.imul(seed ^ seed >>> 15, 1 | seed);
    t = t + Math.imul(t ^ t >>> 7, 61 | t) ^ t;
    yield ((t ^ t >>> 14) >>> 0) / 4294967296;
  }
}
function draw(p, temperature, chance) {  // an id with probability ∝ p^(1 / temperature); UNKNOWN, 0, is never drawn
  const most = 1 + argmax(p.subarray(1));
  if (temperature === 0) return most;
  const shares = p.map((v, k) => k === 0 ? 0 : (v / p[most]) ** (1 / temperature));
  let left = chance * shares.reduce((a, b) => a + b);
  for (let k = 1; k < shares.length; k++) if ((left -= shares[k]) < 0) return k;
  return most;
}
function likeliest(p, count, names) {  // the `count` most probable ids as rows of `barTable`
  return Array.from(p, (v, k) => k).sort((a, b) => p[b] - p[a]).slice(0, count).map(k => [names(k), p[k]]);
}

// --- the check: the page says so if this browser does not compute what Python computed ---

let deviation;
function begin(predict, start) {  // predict: the input of the check → the probabilities of its last step
  const p = predict(meta.check.input);
  deviation = Math.max(...meta.check.ids.map((id, k) => Math.abs(p[id] - meta.check.p[k])));
  if (deviation < 1e-3) return start();
  $("problem").textContent = `This browser does not compute what the model computes: probabilities differ by ${deviation}.`;
  $("problem").hidden = false;
}
