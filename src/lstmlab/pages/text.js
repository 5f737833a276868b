// A text whose tokens are coloured, the units beside it and a chart above it: of the pages that show a unit along a
// text. Such a page defines tell(t), what the tip says of token t: [its place, its text, ...elements].

// --- the text: a row for each line ---

const spans = [];
function addTokens(tokens) {
  let row = $("text").lastChild;
  for (const token of tokens) {
    const ends = token.endsWith("\n");
    const span = element("span", { textContent: ends ? token.slice(0, -1) || "\u200b" : token, className: token === "\n" ? "break" : "", index: spans.length });
    if (!row || row.ended) $("text").append(row = element("div", { className: "row", first: spans.length }));
    row.append(span);
    row.ended = ends;
    spans.push(span);
  }
}
function clearText() {
  point(-1);
  spans.length = 0;
  $("text").replaceChildren();
}
function visible() {  // the first token in view, and the first one behind it
  const { top, bottom } = $("text").getBoundingClientRect(), rows = $("text").children;
  const find = edge => { let a = 0, b = rows.length; while (b - a > 1) { const m = (a + b) >> 1; rows[m].getBoundingClientRect().top <= edge ? a = m : b = m; } return a; };
  return [rows[find(top)].first, rows[find(bottom) + 1]?.first ?? spans.length];
}
const place = t => `${(t + .5) / spans.length * 100}%`;  // along the chart
function moveView() {
  if (!spans.length) return;
  const [from, to] = visible();
  $("view").hidden = to - from === spans.length;
  $("view").style.left = `${from / spans.length * 100}%`;
  $("view").style.width = `${(to - from) / spans.length * 100}%`;
}

// --- the token under the pointer, or chosen with the arrow keys ---

let here = -1;
function point(t, at) {  // at: a rectangle beside which the tip stands
  spans[here]?.classList.remove("here");
  here = t;
  $("caret").hidden = t < 0;
  if (t < 0) return hideTip();
  spans[t].classList.add("here");
  $("caret").style.left = place(t);
  const [where, token, ...lines] = tell(t);
  showTip(at ?? spans[t].getBoundingClientRect(),
    element("div", {}, element("span", { className: "place", textContent: where }), element("span", { className: "token", textContent: shown(token) })), ...lines);
}
function goTo(t) {
  spans[t].scrollIntoView({ block: "center" });
  point(t);
}
$("text").addEventListener("mouseover", event => {
  if (event.target.index !== undefined) point(event.target.index, { left: event.clientX, top: event.clientY - 8, bottom: event.clientY + 8 });
});
$("text").addEventListener("mouseleave", () => point(-1));
$("text").addEventListener("blur", () => point(-1));
$("text").addEventListener("scroll", moveView, { passive: true });
$("text").addEventListener("keydown", event => {
  const move = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  if (!move) return;
  event.preventDefault();
  const t = here < 0 ? visible()[0] : Math.max(0, Math.min(spans.length - 1, here + move));
  spans[t].scrollIntoView({ block: "nearest" });
  point(t);
});
$("chart").addEventListener("click", event => {
  const { left, width } = $("chart").getBoundingClientRect();
  goTo(Math.min(spans.length - 1, Math.floor((event.clientX - left) / width * spans.length)));
});

// --- the chart: in each column the range of the values, their mean, and below it how much of a feature there is ---

function drawChart(value, share, feature) {  // value(t): from 0 to 1 for a share, else from −1; feature(t): from 0 to 1
  const [ctx, width, height] = context2d($("chart")), N = spans.length, plot = feature ? height - 16 : height;
  const columns = Math.max(1, Math.min(N, Math.floor(width))), step = width / columns;
  const y = v => 2 + (plot - 4) * (share ? 1 - v : (1 - v) / 2), base = y(0), truth = ink("--ink"), line = ink("--faint");
  ctx.fillStyle = ink("--panel");
  ctx.fillRect(0, 0, width, plot);
  for (let x = 0; x < columns; x++) {
    const from = Math.floor(x * N / columns), to = Math.max(from + 1, Math.floor((x + 1) * N / columns));
    let low = 1, high = -1, sum = 0, known = 0;
    for (let t = from; t < to; t++) { const v = value(t); low = Math.min(low, v); high = Math.max(high, v); sum += v; known += feature?.(t) ?? 0; }
    const mean = sum / (to - from), top = Math.min(y(high), base), bottom = Math.max(y(low), base);
    ctx.fillStyle = share ? tint(mean) : colour(high > -low ? high : low);
    ctx.fillRect(x * step, top, step + .5, Math.max(1, bottom - top));
    ctx.globalAlpha = .7;
    ctx.fillStyle = line;
    if (to - from > 1) ctx.fillRect(x * step, y(mean), step + .5, 1);
    ctx.fillStyle = truth;
    ctx.globalAlpha = .08 + .8 * known / (to - from);
    if (feature) ctx.fillRect(x * step, height - 12, step + .5, 12);
    ctx.globalAlpha = 1;
  }
}

// --- the units, in the order of their scores ---

function correlate(values, feature) {  // Pearson's r
  const N = values.length;
  let v = 0, f = 0, vv = 0, ff = 0, vf = 0;
  for (let t = 0; t < N; t++) { v += values[t]; f += feature[t]; vv += values[t] ** 2; ff += feature[t] ** 2; vf += values[t] * feature[t]; }
  const ofV = vv - v * v / N, ofF = ff - f * f / N;
  return ofV > 1e-9 * vv && ofF > 1e-9 * ff ? (vf - v * f / N) / Math.sqrt(ofV * ofF) : 0;  // 0 where one is constant
}
function deviationOf(values) {
  let sum = 0, squares = 0;
  for (const v of values) { sum += v; squares += v * v; }
  return Math.sqrt(Math.max(0, squares / values.length - (sum / values.length) ** 2));
}
const ranked = scores => Array.from(scores, (_, unit) => unit).sort((a, b) => Math.abs(scores[b]) - Math.abs(scores[a]));

const SPARKS = 120;  // the means that a small curve is drawn from
const painter = new IntersectionObserver(entries => {  // of those curves that come into view
  for (const { target, isIntersecting } of entries) {
    if (!isIntersecting) continue;
    painter.unobserve(target);
    const values = target.values(), N = values.length, bins = Math.min(SPARKS, N), ctx = target.getContext("2d");
    const means = Array.from({ length: bins }, (_, x) => {
      const part = values.slice(Math.floor(x * N / bins), Math.floor((x + 1) * N / bins));
      return part.reduce((a, b) => a + b, 0) / part.length;
    });
    const low = Math.min(...means), span = Math.max(...means) - low || 1;
    ctx.strokeStyle = ink("--accent");
    ctx.lineWidth = 2;
    ctx.beginPath();
    means.forEach((mean, x) => ctx.lineTo((x + .5) * 240 / bins, 37 - 34 * (mean - low) / span));
    ctx.stroke();
  }
}, { root: $("list"), rootMargin: "300px" });
function listUnits(units, label, values) {  // label(unit): its score; values(unit): those along the text
  painter.disconnect();
  $("list").replaceChildren(...units.map(unit => {
    const canvas = element("canvas", { width: 240, height: 40, ariaHidden: true, values: () => values(unit) });
    painter.observe(canvas);
    return element("button", { unit, ariaLabel: `unit ${unit} ${label(unit)}` },
      element("span", { className: "number", textContent: unit }), canvas, element("span", { className: "score", textContent: label(unit) }));
  }));
}
function markUnit(unit) {
  for (const button of $("list").children) button.setAttribute("aria-current", button.unit === unit);
  $("unit").value = unit;
}
function listenToUnits(count, choose) {
  $("unit").max = count - 1;
  $("unit").addEventListener("input", ({ target: { valueAsNumber: unit } }) => { if (Number.isInteger(unit) && unit >= 0 && unit < count) choose(unit); });
  $("list").addEventListener("click", event => { const button = event.target.closest("button"); if (button) choose(button.unit); });
  $("list").addEventListener("keydown", event => {
    const next = document.activeElement[{ ArrowDown: "nextSibling", ArrowUp: "previousSibling" }[event.key]];
    if (next) { event.preventDefault(); next.focus(); next.click(); }
  });
}
