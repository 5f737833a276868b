// What the pages of all tasks share: the data in the page, colours, controls, tips, and the check at the start.

const $ = id => document.getElementById(id);
const meta = JSON.parse($("meta").textContent);
const weights = unpackWeights($("weights").textContent, meta.layout);

function element(tag, properties = {}, ...children) {
  const made = Object.assign(document.createElement(tag), properties);
  made.append(...children);
  return made;
}
const pause = () => new Promise(resolve => setTimeout(resolve));  // lets the browser draw and listen
const shown = token => token.replace(/\n/g, "⏎").replace(/\t/g, "→").replace(/ /g, "␣");
const signed = (value, digits = 2) => value.toFixed(digits).replace("-", "−");
const percent = p => p < 0.0005 ? "< 0.1 %" : p > 0.9995 ? "> 99.9 %" : `${(100 * p).toFixed(p < 0.0995 || p > 0.9905 ? 1 : 0)} %`;

// --- colours: from blue by paper to orange, and from paper to teal ---

const dark = matchMedia("(prefers-color-scheme: dark)");
const RAMPS = {
  light: { negative: [92, 152, 224], zero: [251, 250, 248], positive: [240, 138, 84], share: [70, 182, 166] },
  dark: { negative: [40, 100, 176], zero: [20, 21, 23], positive: [178, 84, 26], share: [14, 118, 108] },
};
function mix(to, share) {
  const ramp = RAMPS[dark.matches ? "dark" : "light"];
  return `rgb(${ramp.zero.map((z, k) => Math.round(z + (ramp[to][k] - z) * Math.min(1, share))).join(" ")})`;
}
const colour = value => mix(value < 0 ? "negative" : "positive", Math.abs(value));  // of a value from −1 to 1
const tint = share => mix("share", share);  // of a value from 0 to 1
const ink = name => getComputedStyle(document.body).getPropertyValue(name);

function context2d(canvas) {  // → context, width and height in CSS pixels
  const ratio = devicePixelRatio || 1, { width, height } = canvas.getBoundingClientRect();
  canvas.width = Math.round(width * ratio);
  canvas.height = Math.round(height * ratio);
  const ctx = canvas.getContext("2d");
  ctx.scale(ratio, ratio);
  return [ctx, width, height];
}

// --- controls ---

function choices(id, options, chosen, act) {  // radio buttons side by side; options: [[value, label], …]
  $(id).hidden = options.length < 2;
  $(id).append(...options.map(([value, label]) => {
    const input = element("input", { type: "radio", name: id, value, checked: value === chosen });
    input.addEventListener("change", () => act(value));
    return element("label", { className: "choice" }, input, element("span", { textContent: label }));
  }));
}

// --- the tip beside the pointer ---

function showTip(at, ...children) {  // at: a rectangle
  const tip = $("tip");
  tip.replaceChildren(...children);
  tip.hidden = false;
  const size = tip.getBoundingClientRect(), below = at.bottom + 10 + size.height < innerHeight;
  tip.style.left = `${Math.max(8, Math.min(innerWidth - size.width - 8, at.left))}px`;
  tip.style.top = `${below ? at.bottom + 10 : Math.max(8, at.top - size.height - 10)}px`;
}
const hideTip = () => { $("tip").hidden = true; };
function barTable(rows, mark = -1) {  // rows: [[label, share], …]; row `mark` stands out
  return element("table", { className: "bars" }, ...rows.map(([label, p], k) => {
    const bar = element("i");
    bar.style.width = `${Math.max(1, 100 * p)}%`;
    return element("tr", { className: k === mark ? "shown" : "" },
      element("td", { textContent: label }), element("td", {}, bar), element("td", { textContent: percent(p) }));
  }));
}
function likeliest(p, count, names) {  // the `count` most probable ids as rows of `barTable`
  return Array.from(p, (v, k) => k).sort((a, b) => p[b] - p[a]).slice(0, count).map(k => [names(k), p[k]]);
}

// --- the check: the page says so if this browser does not compute what Python computed ---

let deviation;
function begin(predict, start) {  // predict: the input of the check → the probabilities of its last step
  $("title").textContent = document.title = meta.title;
  $("subtitle").textContent = meta.subtitle;
  const p = predict(meta.check.input);
  deviation = Math.max(...meta.check.ids.map((id, k) => Math.abs(p[id] - meta.check.p[k])));
  if (deviation < 1e-3) return start();
  $("problem").textContent = `This browser does not compute what the model computes: probabilities differ by ${deviation}.`;
  $("problem").hidden = false;
}
