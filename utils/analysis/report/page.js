"use strict";
// Shows the images of the data sets: galleries, and those behind the cells of the confusion matrix. Words that come from
// a run, such as class names, enter the page as text alone.

const data = JSON.parse(document.getElementById("data").textContent);
const classNames = data.classes;
const cellOf = new Map(data.sheets.order.map((position, cell) => [position, cell]));
const sheets = data.sheets.sources.map(async (source) => {
  const sheet = new Image();
  sheet.src = source;
  await sheet.decode();
  return sheet;
});

function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const percent = (share) => `${(100 * share).toFixed(1)} %`;
const counted = (count, noun) => `${count ? count.toLocaleString("en") : "No"} ${noun}${count === 1 ? "" : "s"}`;

// An image: [split, index, true class] and, if it was predicted, [probability of the true class, the most probable
// classes with their probabilities].
function describe(position) {
  const [split, index, trueClass, trueProbability, top] = data.images[position];
  return { position, split, index, trueClass, trueProbability, top, predicted: top?.[0][0], confidence: top?.[0][1] };
}

async function paintImage(canvas, position) {
  const { cell: [down, across], rows, columns, sizes } = data.sheets;
  const cell = cellOf.get(position);
  const [height, width] = sizes[sizes.length > 1 ? cell : 0];
  [canvas.width, canvas.height] = [width, height];
  canvas.style.aspectRatio = `${across} / ${down}`;
  const sheet = await sheets[Math.floor(cell / (rows * columns))];
  const [column, row] = [cell % columns, Math.floor((cell % (rows * columns)) / columns)];
  canvas.getContext("2d").drawImage(sheet, across * column, down * row, width, height, 0, 0, width, height);
}

function painted(position, label) {
  if (!cellOf.has(position)) return element("div", { class: "blank" }, "no room for the image");
  const canvas = element("canvas", { role: "img", "aria-label": label });
  paintImage(canvas, position);
  return canvas;
}

function bar(label, probability, kind) {
  const share = element("span", { class: `bar ${kind}`, style: `--share: ${probability}` });
  return element("li", {}, element("span", {}, classNames[label]), element("span", {}, percent(probability)), share);
}

// An image with its true class, the predicted class, and the most probable classes.
function imageCard(position, caption = "") {
  const { split, index, trueClass, trueProbability, top, predicted } = describe(position);
  const name = `${split === "test" ? "Test" : "Training"} image ${index}`;
  const words = element("figcaption", {}, element("span", { class: "soft" }, name));
  const card = element("figure", { class: "tile" }, painted(position, name), words);
  const fact = (term, label) => element("span", { class: "fact" }, element("span", {}, `${term} `), classNames[label]);
  if (caption) words.append(element("span", { class: "caption" }, caption));
  if (!top) {
    words.append(fact("class", trueClass));
    return card;
  }
  if (predicted === trueClass) words.append(fact("correct", trueClass));
  else words.append(fact("true", trueClass), fact("predicted", predicted));
  const kind = (label) => (label === trueClass ? "correct" : label === predicted ? "wrong" : "");
  const bars = top.map(([label, probability]) => bar(label, probability, kind(label)));
  if (!top.some(([label]) => label === trueClass)) bars.push(bar(trueClass, trueProbability, "correct"));
  words.append(element("ol", { "aria-label": "probabilities" }, ...bars));
  return card;
}

const SORTS = {
  "most confident first": (a, b) => b.confidence - a.confidence,
  "least confident first": (a, b) => a.confidence - b.confidence,
  "by true class": (a, b) => a.trueClass - b.trueClass,
  "by predicted class": (a, b) => a.predicted - b.predicted,
};

// A list of images of which some are shown, more on a press, with controls where the element has data-controls.
class Gallery {
  constructor(root) {
    const { positions, captions } = JSON.parse(root.querySelector("script").textContent);
    this.all = positions.map((position, place) => ({ ...describe(position), caption: captions[place] }));
    this.noun = root.dataset.noun;
    this.step = Number(root.dataset.more);
    this.status = element("p", { role: "status", class: "soft", tabindex: -1 });
    this.list = element("div", { class: "tiles" });
    this.button = element("button", { type: "button", class: "more" });
    this.button.addEventListener("click", () => this.showMore());
    if ("controls" in root.dataset && this.all.length) root.append(this.controls());
    root.append(this.status, this.list, this.button);
    this.show(this.all);
  }

  controls() {
    const select = (label, options) => {
      const made = element("select", { "aria-label": label }, ...options.map(([value, text]) => element("option", { value }, text)));
      made.addEventListener("change", () => this.filter());
      return [made, element("label", {}, label, made)];
    };
    const classes = [["", ""], ...classNames.map((name, label) => [label, name])];
    const [sort, sortLabel] = select("Sort", Object.keys(SORTS).map((name) => [name, name]));
    const [trueClass, trueLabel] = select("True class", classes);
    const [predicted, predictedLabel] = select("Predicted class", classes);
    this.selects = { sort, trueClass, predicted };
    this.count();
    return element("div", { class: "controls" }, sortLabel, trueLabel, predictedLabel);
  }

  matching(...keys) {
    const chosen = keys.filter((key) => this.selects[key].value !== "");
    return this.all.filter((entry) => chosen.every((key) => entry[key] === Number(this.selects[key].value)));
  }

  // Beside each class, how many images it would leave under the other filter.
  count() {
    for (const [key, other] of [["trueClass", "predicted"], ["predicted", "trueClass"]]) {
      const left = this.matching(other);
      for (const option of this.selects[key].options) {
        const label = option.value === "" ? null : Number(option.value);
        const count = label === null ? left.length : left.filter((entry) => entry[key] === label).length;
        option.textContent = `${label === null ? "all" : classNames[label]} (${count.toLocaleString("en")})`;
      }
    }
  }

  filter() {
    this.count();
    this.show(this.matching("trueClass", "predicted").sort(SORTS[this.selects.sort.value]));
  }

  show(entries) {
    this.entries = entries;
    this.shown = 0;
    this.list.replaceChildren();
    this.showMore();
  }

  showMore() {
    const next = this.entries.slice(this.shown, this.shown + this.step);
    this.list.append(...next.map(({ position, caption }) => imageCard(position, caption)));
    this.shown += next.length;
    const left = this.entries.length - this.shown;
    this.status.textContent = counted(this.entries.length, this.noun) + (left ? `, ${this.shown} shown` : "");
    this.button.textContent = `Show ${Math.min(left, this.step)} more`;
    if (!left && document.activeElement === this.button) this.status.focus();
    this.button.hidden = !left;
  }
}

const galleries = new Map([...document.querySelectorAll(".gallery")].map((root) => [root.id, new Gallery(root)]));

// The cells of the confusion matrix and the list of the most frequent confusions: each shows its images below.
function confusions() {
  const behind = document.querySelector(".behind");
  if (!behind) return;
  const heading = behind.querySelector("h3");
  const buttons = [...document.querySelectorAll("button[data-true]")];
  const labels = (button) => [Number(button.dataset.true), Number(button.dataset.predicted)];

  function open(trueClass, predicted) {
    const entries = galleries.get("cell").all.filter(
      (entry) => entry.trueClass === trueClass && entry.predicted === predicted,
    );
    const correct = trueClass === predicted;
    const least = correct && entries.length === Number(behind.dataset.correctPerClass) ? ", the least confident" : "";
    const words = correct ? `classified correctly${least}` : `predicted as ${classNames[predicted]}`;
    heading.textContent = `${classNames[trueClass]} ${words}`;
    galleries.get("cell").show(entries);
    for (const button of buttons) {
      const [itsTrue, itsPredicted] = labels(button);
      if (itsTrue === trueClass && itsPredicted === predicted) button.setAttribute("aria-current", "true");
      else button.removeAttribute("aria-current");
    }
  }

  for (const button of buttons) {
    button.addEventListener("click", () => {
      open(...labels(button));
      heading.scrollIntoView({ block: "nearest" });
    });
  }

  // Of the matrix one cell at a time is in the tab order; arrow keys, Home and End move it.
  const cells = [...document.querySelectorAll(".matrix button")];
  const size = Math.sqrt(cells.length);
  const reach = (cell) => cells.forEach((other) => (other.tabIndex = other === cell ? 0 : -1));
  for (const [place, cell] of cells.entries()) {
    const [row, column] = [Math.floor(place / size), place % size];
    cell.addEventListener("focus", () => reach(cell));
    cell.addEventListener("keydown", (event) => {
      const target = {
        ArrowLeft: [row, column - 1],
        ArrowRight: [row, column + 1],
        ArrowUp: [row - 1, column],
        ArrowDown: [row + 1, column],
        Home: [event.ctrlKey ? 0 : row, 0],
        End: [event.ctrlKey ? size - 1 : row, size - 1],
      }[event.key];
      if (!target) return;
      event.preventDefault();
      const [newRow, newColumn] = target.map((at) => Math.min(Math.max(at, 0), size - 1));
      cells[newRow * size + newColumn].focus();
    });
  }
  const first = document.querySelector(".pairs button") ?? buttons[0];
  open(...labels(first));
  reach(cells.find((cell) => cell.hasAttribute("aria-current")));
}

confusions();
