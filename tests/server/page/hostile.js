// Shows each text, and tells of all that is more than harmless text: elements and attributes beyond these, links to
// anything but http and https, code that ran. And each must become the same when it comes in pieces.
async (texts) => {
  const allowed = new Set(
    ("P BR EM STRONG DEL CODE A H3 H4 H5 H6 HR BLOCKQUOTE UL OL LI SPAN FIGURE FIGCAPTION PRE DIV " +
      "TABLE THEAD TBODY TR TH TD BUTTON").split(" "),
  );
  const attributes = new Set("class href title target rel start tabindex aria-label role scope type".split(" "));
  const { show } = await import("/page/markdown.js");
  const wrong = [];
  for (const text of texts) {
    const box = document.createElement("div");
    show(box, text);
    document.body.append(box); // whatever would load or run does now
    for (const node of box.querySelectorAll("*:not(svg, svg *)")) {
      if (!allowed.has(node.tagName)) wrong.push([text, node.tagName]);
      for (const { name, value } of node.attributes) {
        if (!attributes.has(name)) wrong.push([text, `${node.tagName} ${name}=${value}`]);
        if (name === "href" && !/^https?:\/\/[^\s]/.test(value)) wrong.push([text, value]);
      }
    }
    for (const link of box.querySelectorAll("a")) {
      if (link.rel !== "noopener noreferrer" || link.querySelector("a")) wrong.push([text, link.outerHTML]);
    }
    const parts = document.createElement("div");
    for (let end = 0; end < text.length; end += 1 + (end % 7)) show(parts, text.slice(0, end));
    show(parts, text);
    if (parts.innerHTML !== box.innerHTML) wrong.push([text, "in pieces it is another"]);
    box.remove();
  }
  return [wrong.slice(0, 3), window.alerted ?? false];
}
