// Each mistake with its nearest training images behind it.
for (const row of document.querySelectorAll(".nearest > li")) {
  const { positions, captions } = JSON.parse(row.querySelector("script").textContent);
  row.append(...positions.map((position, place) => imageCard(position, captions[place])));
}
