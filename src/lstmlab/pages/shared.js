"use strict";
// What all pages share: the data in the page, colours, controls and tips.

const $ = id => document.getElementById(id);
const meta = JSON.parse($("meta").textContent);
$("title").textContent = document.title = meta.title;
$("subtitle").textContent = meta.subtitle;

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
const palettes = {};  // of the names of RAMPS, each 129 colours
function fillPalettes() {
  const { zero, ...ends } = RAMPS[dark.matches ? "dark" : "light"];
  for (const [name, end] of Object.entries(ends)) {
    palettes[name] = Array.from({ length: 129 }, (_, k) => `rgb(${zero.map((z, at) => Math.round(z + (end[at] - z) * k / 128)).join(" ")})`);
  }
}
fillPalettes();
dark.addEventListener("change", fillPalettes);
const mix = (name, share) => palettes[name][Math.round(128 * Math.min(1, share))];
const colour = value => value < 0 ? mix("negative", -value) : mix("positive", value);  // of a value from −1 to 1
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
function drawRamp(canvas, colours, low) {  // the colours of the values from `low` to 1
  const [ctx, width, height] = context2d(canvas);
  for (let x = 0; x < width; x++) { ctx.fillStyle = colours(low + (1 - low) * x / width); ctx.fillRect(x, 0, 1, height); }
}

// --- controls ---

function choices(id, options, chosen, act) {  // radio buttons side by side; options: [[value, label, what it means], …]
  $(id).hidden = options.length < 2;
  $(id).append(...options.map(([value, label, title = ""]) => {
    const input = element("input", { type: "radio", name: id, value, checked: value === chosen, ariaLabel: title || label });
    input.addEventListener("change", () => act(value));
    return element("label", { className: "choice", title }, input, element("span", { textContent: label }));
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
