// The maps of the test images: the image at the pointer, or the one that arrow keys have gone to, beside its point.
const root = document.querySelector(".maps");
const positions = JSON.parse(root.querySelector("script").textContent);
const card = root.querySelector(".card");
const [byClass, mistakesOnly] = [root.querySelector("select"), root.querySelector("input")];
const REACH = 40; // how far from the pointer a point may be, where the map is 1000 wide

// The places of a map's points, in the order of `positions`, each with the path that it is part of.
function readPoints(svg) {
  return [...svg.querySelectorAll("path")].flatMap((path) =>
    [...path.getAttribute("d").matchAll(/M(\d+) (\d+)/g)].map(([, x, y]) => ({ path, x: Number(x), y: Number(y) })),
  );
}

const maps = [...root.querySelectorAll("svg")].map((svg) => ({ svg, points: readPoints(svg), marker: svg.querySelector(".marker") }));
const visible = (point) => !point.path.classList.contains("off");
let current = null;

// The point with the least cost, if it is finite.
function best(map, cost) {
  let [found, least] = [null, Infinity];
  for (const [place, point] of map.points.entries()) {
    const its = visible(point) ? cost(point, place) : Infinity;
    if (its < least) [found, least] = [place, its];
  }
  return found;
}

function hide() {
  current = null;
  card.hidden = true;
  for (const { marker } of maps) marker.setAttribute("hidden", "");
}

function show(map, place) {
  if (place !== current) {
    current = place;
    card.replaceChildren(imageCard(positions[place]));
    for (const { points, marker } of maps) {
      marker.setAttribute("cx", points[place].x);
      marker.setAttribute("cy", points[place].y);
      marker.removeAttribute("hidden");
    }
  }
  card.hidden = false;
  const [frame, box] = [root.getBoundingClientRect(), map.svg.getBoundingClientRect()];
  const { x, y } = map.points[place];
  const [left, top] = [box.left - frame.left + (x / 1000) * box.width, box.top - frame.top + (y / 1000) * box.height];
  const room = left + 20 + card.offsetWidth <= frame.width;
  card.style.left = `${Math.max(0, room ? left + 20 : left - 20 - card.offsetWidth)}px`;
  card.style.top = `${Math.max(0, top - card.offsetHeight / 2)}px`;
}

function atPointer(map, event) {
  const box = map.svg.getBoundingClientRect();
  const [x, y] = [(1000 * (event.clientX - box.left)) / box.width, (1000 * (event.clientY - box.top)) / box.height];
  const place = best(map, (point) => {
    const distance = Math.hypot(point.x - x, point.y - y);
    return distance < REACH ? distance : Infinity;
  });
  if (place === null) hide();
  else show(map, place);
}

// From the current point, the nearest one that lies more in this direction than beside it.
function step(map, [right, down]) {
  const from = map.points[current];
  const place = best(map, (point) => {
    const ahead = (point.x - from.x) * right + (point.y - from.y) * down;
    const beside = Math.abs((point.x - from.x) * down) + Math.abs((point.y - from.y) * right);
    return ahead > 0 && beside <= ahead ? ahead + beside : Infinity;
  });
  if (place !== null) show(map, place);
}

const DIRECTIONS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
for (const map of maps) {
  for (const kind of ["pointermove", "pointerdown"]) map.svg.addEventListener(kind, (event) => atPointer(map, event));
  map.svg.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide());
  map.svg.addEventListener("blur", hide);
  map.svg.addEventListener("focus", () => {
    if (!map.svg.matches(":focus-visible")) return;
    const middle = best(map, (point) => Math.hypot(point.x - 500, point.y - 500));
    if (middle !== null) show(map, middle);
  });
  map.svg.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide();
    if (!(event.key in DIRECTIONS) || current === null) return;
    event.preventDefault();
    step(map, DIRECTIONS[event.key]);
  });
}

function filter() {
  hide();
  for (const { svg } of maps) {
    for (const path of svg.querySelectorAll("path")) {
      const other = byClass.value !== "" && path.dataset.label !== byClass.value;
      path.classList.toggle("off", other || (mistakesOnly.checked && path.classList.contains("dot")));
    }
  }
}

byClass.addEventListener("change", filter);
mistakesOnly.addEventListener("change", filter);
