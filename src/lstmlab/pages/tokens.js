// Texts as ids and back, as Hugging Face's tokenizers makes them for data.tokenizer=word, bpe and char.

const { tokenizer } = meta, PAD = 0, BOS = 1, EOS = 2, UNK = 3;
const known = new Map(tokenizer.vocabulary.map((token, id) => [token, id]));
// \w and \s of Oniguruma, which has wider ones than JavaScript
const LETTER = "\\p{Alphabetic}\\p{M}\\p{Nd}\\p{Pc}²³¹¼½¾", SPACE = "\\t-\\r \\x85\\xa0\\u1680\\u2000-\\u200a\\u2028\\u2029\\u202f\\u205f\\u3000";
const WORD = new RegExp(`[${LETTER}]+(?:['’][${LETTER}]+)*`, "gu");
const WORDS = new RegExp(`${WORD.source}|[^${LETTER}${SPACE}]+`, "gu");
const PIECES = new RegExp(
  `'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^${SPACE}\\p{L}\\p{N}]+|[${SPACE}]+(?![^${SPACE}])|[${SPACE}]+`, "gu");

// A byte as a printable character, as in GPT-2
const printable = byte => byte >= 33 && byte <= 126 || byte >= 161 && byte <= 172 || byte >= 174;
let others = 256;
const ALPHABET = Array.from({ length: 256 }, (_, byte) => String.fromCharCode(printable(byte) ? byte : others++));
const BYTES = new Map(ALPHABET.map((character, byte) => [character, byte]));

const ranks = new Map(tokenizer.merges.map((pair, rank) => [pair, rank]));
const merged = new Map();
function merge(piece) {  // byte pairs: the pair that was learnt first is joined first, from the left
  if (merged.has(piece)) return merged.get(piece);
  const parts = Array.from(new TextEncoder().encode(piece), byte => ALPHABET[byte]);
  for (;;) {
    let best = -1, lowest = Infinity;
    for (let k = 0; k + 1 < parts.length; k++) {
      const rank = ranks.get(`${parts[k]} ${parts[k + 1]}`);
      if (rank < lowest) [best, lowest] = [k, rank];
    }
    if (best < 0) break;
    parts.splice(best, 2, parts[best] + parts[best + 1]);
  }
  merged.set(piece, parts);
  return parts;
}
function encode(text) {  // a text without any token is one UNK
  if (tokenizer.lowercase) text = Array.from(text, character => character.toLowerCase()).join("");
  const tokens = {
    word: () => text.match(WORDS) ?? [],
    char: () => [...text],
    bpe: () => text ? ` ${text}`.match(PIECES).flatMap(merge) : [],
  }[tokenizer.kind]();
  const ids = tokens.map(token => known.get(token) ?? UNK);
  return ids.length ? ids : [UNK];
}
function decode(ids) {  // special tokens included, if there are any
  const tokens = ids.map(id => tokenizer.vocabulary[id]);
  if (tokenizer.kind !== "bpe") return tokens.join("");
  const bytes = tokens.flatMap((token, k) => ids[k] <= UNK ? [...new TextEncoder().encode(token)] : Array.from(token, c => BYTES.get(c)));
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(new Uint8Array(bytes)).replace(/^ /, "");
}

// HTML tags and entities, removed as by Python's html.unescape: the browser knows the names
const entity = document.createElement("textarea");
function clean(text) {
  return text.replace(/<\/?[a-zA-Z][^>]*>/g, " ")
    .replace(/&(#[0-9]+;?|#[xX][0-9a-fA-F]+;?|[^\t\n\f <&#;]{1,32};?)/g, (reference, name) => {
      entity.innerHTML = reference;
      const found = entity.textContent;
      return name[0] === "#" && /^[\x01-\x08\x0b\x0e-\x1f\x7f\p{Noncharacter_Code_Point}]$/u.test(found) ? "" : found;
    });
}
