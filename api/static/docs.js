"use strict";
// Shows openapi.json. Text goes into the page as text nodes alone, so nothing in the document can become markup.

const METHODS = ["get", "post", "put", "patch", "delete"];
let api;

/** An element: a node, a string or null each as child; a class by name, other attributes by an object. */
function make(name, attributes, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(typeof attributes === "string" ? { class: attributes } : attributes)) {
    element.setAttribute(key, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

/** Prose; what stands between backticks is code. */
function prose(text) {
  return make("p", {}, ...(text || "").split("`").map((part, i) => (i % 2 ? make("code", {}, part) : part)));
}

function resolved(schema) {
  const name = schema && schema.$ref && schema.$ref.split("/").pop();
  return name ? { name, schema: api.components.schemas[name] || {} } : { name: null, schema: schema || {} };
}

/** A schema in a word or two: `string ≤ 64 | null`, `list of Job`. */
function typeName(reference) {
  const { name, schema } = resolved(reference);
  if (name && schema.type !== "string") return name;
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return [...new Set(choices.map(typeName))].join(" | ");
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(" | ");
  if (schema.type === "array") return `list of ${schema.items ? typeName(schema.items) : "anything"}`;
  if (schema.type === "object" && schema.additionalProperties) {
    return `object of ${typeof schema.additionalProperties === "object" ? typeName(schema.additionalProperties) : "anything"}`;
  }
  return (schema.format || schema.type || "anything") + limits(schema);
}

function limits(schema) {
  const shown = [];
  const bounds = [["minimum", "≥"], ["exclusiveMinimum", ">"], ["maximum", "≤"], ["exclusiveMaximum", "<"]];
  for (const [key, sign] of bounds) {
    if (Math.abs(schema[key]) <= Number.MAX_SAFE_INTEGER) shown.push(`${sign} ${schema[key]}`); // others bound nobody
  }
  if (schema.maxLength !== undefined) shown.push(`≤ ${schema.maxLength} characters`);
  return shown.length ? ` ${shown.join(", ")}` : "";
}

/** What stands for a value that is not given. */
function fallback(schema) {
  const given = schema.default !== undefined && schema.default !== null && schema.const === undefined;
  return given ? `, default ${JSON.stringify(schema.default)}` : "";
}

/** Every schema with fields that a value may be: through unions, lists and maps. */
function withFields(reference) {
  const { schema } = resolved(reference);
  if (schema.properties) return [reference];
  const inner = [...(schema.anyOf || schema.oneOf || schema.allOf || []), schema.items, schema.additionalProperties];
  return inner.filter((part) => part && typeof part === "object").flatMap(withFields);
}

/** The fields of an object; those that are objects open on demand, so that recursion costs nothing. */
function fields(reference) {
  const { schema } = resolved(reference);
  const items = Object.entries(schema.properties || {}).map(([name, property]) => {
    const needed = (schema.required || []).includes(name) && property.default === undefined;
    const line = [make("code", {}, name), " ", make("span", "type", typeName(property) + fallback(property)), " ",
      needed ? make("span", "needed", "required") : null];
    const inner = withFields(property);
    const item = make("li", {}, ...(inner.length ? [opening(line, () => inner.map(named))] : line));
    const text = property.description || resolved(property).schema.description;
    if (text) item.append(prose(text));
    return item;
  });
  return make("ul", "fields", ...items);
}

function named(reference) {
  const { name } = resolved(reference);
  return make("div", {}, name ? make("p", "soft", name) : null, fields(reference));
}

/** A <details> whose inside is made when it opens first. */
function opening(line, inside) {
  const details = make("details", {}, make("summary", {}, ...line));
  details.addEventListener("toggle", () => {
    if (details.open && details.childElementCount === 1) details.append(...inside());
  });
  return details;
}

/** A value that fits the schema: its example, or the least that has every required field. */
function example(reference, depth = 0) {
  const { schema } = resolved(reference);
  if (schema.examples && schema.examples.length) return schema.examples[0];
  if (schema.example !== undefined) return schema.example;
  if (schema.default !== undefined) return schema.default;
  if (schema.const !== undefined) return schema.const;
  if (schema.enum) return schema.enum[0];
  const choices = schema.anyOf || schema.oneOf;
  if (choices) return example(choices[0], depth);
  if (schema.type === "array") return schema.minItems && depth < 6 ? [example(schema.items, depth + 1)] : [];
  if (schema.properties || schema.type === "object") {
    const needed = depth < 6 ? schema.required || [] : [];
    return Object.fromEntries(needed.map((name) => [name, example(schema.properties[name], depth + 1)]));
  }
  return { string: "…", integer: schema.minimum || 1, number: 1.0, boolean: true }[schema.type] ?? null;
}

function bodyExample(body) {
  const [type, media] = Object.entries(body.content)[0];
  const given = media.example ?? (media.examples && Object.values(media.examples)[0].value);
  return { type, value: given ?? example(media.schema) };
}

/** The request as a line for a shell; whatever is quoted may hold quotes itself. */
function curl(method, path, operation) {
  const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;
  const base = document.baseURI.replace(/\/docs\/?([?#].*)?$/, "");
  const words = ["curl"];
  if (method !== "get") words.push("-X", method.toUpperCase());
  if ((operation.security || []).length) words.push("-H", '"Authorization: Bearer $KLEASH_KEY"');
  const needed = (operation.parameters || []).filter((parameter) => parameter.in === "query" && parameter.required);
  const query = needed.map(({ name, schema }) => `${name}=${encodeURIComponent(example(schema))}`).join("&");
  words.push(quoted(base + path.replace(/[{}]/g, (brace) => (brace === "{" ? "<" : ">")) + (query && `?${query}`)));
  if (operation.requestBody) {
    const { type, value } = bodyExample(operation.requestBody);
    if (type === "application/json") words.push("--json", quoted(JSON.stringify(value)));
    else words.push("-H", quoted(`Content-Type: ${type}`), "--data-binary", "@file");
  }
  return words.join(" ");
}

function copyable(text) {
  const button = make("button", { type: "button" }, "Copy");
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = "Copy"; }, 1500);
  });
  return make("div", "curl", make("pre", { tabindex: "0" }, make("code", {}, text)), button);
}

function parameters(operation) {
  const rows = (operation.parameters || []).map((parameter) => make("tr", {},
    make("th", { scope: "row" }, make("code", {}, parameter.name)),
    make("td", {}, parameter.in, parameter.required ? make("span", "needed", " required") : null),
    make("td", {}, make("span", "type", typeName(parameter.schema) + fallback(parameter.schema)),
      parameter.description || parameter.schema.description ? prose(parameter.description || parameter.schema.description) : null)));
  return rows.length ? [make("h4", {}, "Parameters"), make("table", {}, make("tbody", {}, ...rows))] : [];
}

function responses(operation) {
  const rows = Object.entries(operation.responses).sort().map(([status, response]) => {
    const media = Object.entries(response.content || {});
    const inner = media.flatMap(([, content]) => withFields(content.schema));
    const line = [media.map(([type, content]) => (type.endsWith("json") ? typeName(content.schema) : type)).join(", ")];
    return make("tr", {}, make("th", { scope: "row" }, status), make("td", {}, prose(response.description)),
      make("td", {}, inner.length ? opening(line, () => inner.map(named)) : line[0]));
  });
  return [make("h4", {}, "Answers"), make("table", {}, make("tbody", {}, ...rows))];
}

function inside(method, path, operation) {
  const body = operation.requestBody;
  const schema = body && Object.values(body.content)[0].schema;
  return [make("div", "body", operation.description ? prose(operation.description) : null,
    make("h4", {}, "curl"), copyable(curl(method, path, operation)), ...parameters(operation),
    ...(schema ? [make("h4", {}, `Body: ${typeName(schema)}`), ...withFields(schema).map(named)] : []),
    ...responses(operation))];
}

function article(method, path, operation) {
  const line = [make("span", `method ${method}`, method), make("code", "path", path),
    make("span", "summary", operation.summary || "")];
  return make("article", { id: operation.operationId }, opening(line, () => inside(method, path, operation)));
}

function show() {
  const operations = Object.entries(api.paths).flatMap(([path, methods]) => METHODS.filter((method) => methods[method])
    .map((method) => ({ method, path, operation: methods[method], tag: (methods[method].tags || ["other"])[0] })));
  const main = document.getElementById("operations"), index = document.getElementById("index");
  document.getElementById("summary").textContent = `${api.info.summary || ""} Version ${api.info.version}.`;
  document.getElementById("status").remove();
  const resource = (one) => one.path.split("/").slice(0, 3).join("/");
  const order = [...new Set(operations.map(resource))];
  operations.sort((one, other) => order.indexOf(resource(one)) - order.indexOf(resource(other))
    || (one.path < other.path ? -1 : Number(one.path > other.path)));
  const described = new Map((api.tags || []).map((one) => [one.name, one.description]));
  for (const tag of new Set([...described.keys(), ...operations.map((one) => one.tag)])) {
    const list = make("ul", {}), section = make("section", {}, make("h2", {}, tag), prose(described.get(tag)));
    main.append(section);
    index.append(make("div", {}, make("h2", {}, tag), list));
    for (const { method, path, operation } of operations.filter((one) => one.tag === tag)) {
      section.append(article(method, path, operation));
      list.append(make("li", {}, make("a", { href: `#${operation.operationId}` }, make("span", `method ${method}`, method),
        make("span", {}, operation.summary || path))));
    }
  }
}

/** Open the operation that the address names. */
function follow() {
  const target = document.getElementById(location.hash.slice(1));
  if (target && target.tagName === "ARTICLE") {
    target.firstElementChild.open = true;
    target.firstElementChild.firstElementChild.focus();
    target.scrollIntoView();
  }
}

function filter(text) {
  const words = text.toLowerCase().split(/\s+/);
  for (const element of document.querySelectorAll("article, nav li")) {
    const id = element.id || element.firstElementChild.hash.slice(1);
    const shown = document.getElementById(id).querySelector("summary").textContent.toLowerCase();
    element.hidden = !words.every((word) => shown.includes(word));
  }
}

fetch("openapi.json").then((answer) => answer.json()).then((read) => {
  api = read;
  show();
  follow();
  addEventListener("hashchange", follow);
  const box = document.getElementById("filter");
  box.addEventListener("input", () => filter(box.value));
  addEventListener("keydown", (event) => {
    if (event.key === "/" && document.activeElement !== box) { event.preventDefault(); box.focus(); }
  });
}).catch(() => { document.getElementById("status").textContent = "openapi.json could not be read."; });
