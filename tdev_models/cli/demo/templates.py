"""What the demo's agents build an application of: the text of each file it may have."""

from __future__ import annotations

SERVER = '''\
"""Serve the pages and the API on 127.0.0.1: python server.py [PORT]."""

import json
import os
import secrets
import sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import api
from store import HERE, SCHEMA

TOKEN = SCHEMA["auth"] and (os.environ.get("APP_TOKEN") or secrets.token_hex(8))
KINDS = {".html": "text/html", ".js": "text/javascript", ".json": "application/json"}


class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        page = HERE / (self.path.partition("?")[0].strip("/") or "index.html")
        if page.parent == HERE and page.suffix in KINDS and page.is_file():
            self.reply(200, page.read_bytes(), KINDS[page.suffix])
        else:
            self.do_POST()

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        try:
            if TOKEN and self.headers.get("Authorization") != f"Bearer {TOKEN}":
                status, value = 401, {"error": "token needed"}
            else:
                status, value = api.handle(self.command, self.path, json.loads(body or b"{}"))
        except (ValueError, LookupError) as error:
            status, value = 400, {"error": repr(error)}
        self.reply(status, json.dumps(value).encode(), KINDS[".json"])

    def reply(self, status, body, kind):
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


if __name__ == "__main__":
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8000
    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    print(f"http://127.0.0.1:{server.server_port}", f"token: {TOKEN}" if TOKEN else "", flush=True)
    server.serve_forever()
'''

STORE = '''\
"""The rows, in the SQLite file app.db."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

HERE = Path(__file__).resolve().parent
SCHEMA = json.loads((HERE / "schema.json").read_text())
FIELDS = SCHEMA["entities"]


def run(statement, values=()):
    with closing(sqlite3.connect(HERE / "app.db")) as database, database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute(statement, values)]


for entity, fields in FIELDS.items():
    run(f"CREATE TABLE IF NOT EXISTS {entity} (id INTEGER PRIMARY KEY, {', '.join(fields)})")


def find(name, text):
    columns = " || ' ' || ".join(FIELDS[name])
    return run(f"SELECT * FROM {name} WHERE instr(lower({columns}), lower(?))", [text])


def add(name, values):
    row = [str(values[field]) for field in FIELDS[name]]
    marks = ", ".join("?" for _ in row)
    return run(f"INSERT INTO {name} VALUES (NULL, {marks}) RETURNING *", row)[0]
'''

REST_API = '''\
"""GET /api/NAME, GET /api/NAME?q=TEXT and POST /api/NAME."""

from urllib.parse import parse_qs, urlsplit

import store


def handle(method, path, body):
    url = urlsplit(path)
    match method, url.path.split("/"):
        case "GET", ["", "api", name]:
            return 200, store.find(name, parse_qs(url.query).get("q", [""])[0])
        case "POST", ["", "api", name]:
            return 201, store.add(name, body)
    return 404, {"error": "no such path"}
'''

REST_CALLS = """\
export const find = (name, text) => send("GET", `api/${name}?q=${encodeURIComponent(text)}`);
export const add = (name, values) => send("POST", `api/${name}`, values);
"""

GRAPHQL_API = '''\
"""POST /graphql; one field a request, flat selections.

{ NAME(search: "text") { id title } }    mutation { add_NAME(title: "text") { id } }
"""

import json
import re

import store

WHOLE = re.compile(
    r"(?s)\\s*(mutation)?\\s*{\\s*(\\w+)\\s*(?:\\((.*)\\))?\\s*{([\\w\\s]*)}\\s*}\\s*"
)
ARGUMENT = re.compile(r'(\\w+)\\s*:\\s*("(?:[^"\\\\]|\\\\.)*")')


def handle(method, path, body):
    if (method, path) != ("POST", "/graphql"):
        return 404, {"error": "no such path"}
    parsed = WHOLE.fullmatch(body["query"])
    if not parsed:
        return 400, {"errors": [{"message": "not understood"}]}
    mutation, field, arguments, keys = parsed.groups()
    given = {name: json.loads(value) for name, value in ARGUMENT.findall(arguments or "")}
    if mutation:
        row = store.add(field.removeprefix("add_"), given)
        return 200, {"data": {field: {key: row[key] for key in keys.split()}}}
    rows = store.find(field, given.get("search", ""))
    return 200, {"data": {field: [{key: row[key] for key in keys.split()} for row in rows]}}
'''

GRAPHQL_CALLS = """\
const ask = async (query) => Object.values((await send("POST", "graphql", { query })).data)[0];
const listed = (values) => Object.entries(values).map(([k, v]) => `${k}: ${JSON.stringify(v)}`);

export const find = (name, text) =>
  ask(`{ ${name}(${listed({ search: text })}) { id ${schema.entities[name].join(" ")} } }`);
export const add = (name, values) => ask(`mutation { add_${name}(${listed(values)}) { id } }`);
"""

CLIENT = """\
export const schema = await (await fetch("schema.json")).json();

const headers = () =>
  schema.auth ? { Authorization: `Bearer ${(localStorage.token ||= prompt("Token"))}` } : {};
const send = async (method, path, body) => {
  const answer = await fetch(path, { method, headers: headers(), body: JSON.stringify(body) });
  if (!answer.ok) throw new Error(await answer.text());
  return answer.json();
};

"""

REACT_APP = """\
import { createElement as h, useEffect, useState } from "react";
import { createRoot } from "react-dom/client";
import { add, find, schema } from "./client.js";

function Entity({ name, fields }) {
  const [rows, setRows] = useState([]);
  const [text, setText] = useState("");
  const load = () => find(name, text).then(setRows);
  useEffect(() => void load(), [text]);
  const onSubmit = async (event) => {
    event.preventDefault();
    const form = event.currentTarget;
    await add(name, Object.fromEntries(new FormData(form)));
    form.reset();
    load();
  };
  const search = { placeholder: "search", onChange: (event) => setText(event.target.value) };
  return h("section", null, h("h2", null, name), schema.search && h("input", search),
    h("form", { onSubmit },
      fields.map((field) => h("input", { key: field, name: field, placeholder: field })),
      h("button", null, "Add")),
    h("ul", null, rows.map((row) =>
      h("li", { key: row.id }, fields.map((field) => row[field]).join(" · ")))));
}

createRoot(document.getElementById("app")).render(Object.entries(schema.entities).map(
  ([name, fields]) => h(Entity, { key: name, name, fields })));
"""

VUE_APP = """\
import { createApp } from "vue";
import { add, find, schema } from "./client.js";

const Entity = {
  props: ["name", "fields"],
  data: () => ({ rows: [], text: "", draft: {}, search: schema.search }),
  created() { this.load(); },
  watch: { text() { this.load(); } },
  methods: {
    async load() { this.rows = await find(this.name, this.text); },
    async submit() { await add(this.name, this.draft); this.draft = {}; this.load(); },
  },
  template: `<section><h2>{{ name }}</h2>
    <input v-if="search" v-model="text" placeholder="search">
    <form @submit.prevent="submit"><button>Add</button>
      <input v-for="field in fields" v-model="draft[field]" :placeholder="field" required></form>
    <ul><li v-for="row in rows" :key="row.id">{{ fields.map((f) => row[f]).join(" · ") }}</li></ul>
  </section>`,
};

createApp({
  components: { Entity },
  data: () => schema,
  template: `<Entity v-for="(fields, name) in entities" :name="name" :fields="fields" />`,
}).mount("#app");
"""

PAGE = """\
<!doctype html>
<html lang="en">
<meta charset="utf-8">
<title>@TITLE@</title>
<style>body { background: @BACK@; color: @FORE@; font: 16px/1.5 system-ui; margin: 2rem }</style>
<script type="importmap">{"imports": @IMPORTS@}</script>
<h1>@TITLE@</h1>
<main id="app"></main>
<script type="module" src="app.js"></script>
</html>
"""

README = """\
# @TITLE@

Made for the request: @REQUEST@

    python server.py 8000

Made of @PARTS@. It needs Python 3.11 and a browser that reaches @LIBRARIES@.
"""
