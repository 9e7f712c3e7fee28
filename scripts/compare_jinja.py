#!/usr/bin/env python3
"""Compares ggro's chat templates with Python's Jinja2, set up as transformers sets it up.

Small templates are drawn from a grammar (literals, operators, methods, filters, tests, statements), with pieces and whole
templates of our own beside them. Each is rendered by Jinja2 here and by ggro in the test `renders_given_cases` of `cargo test
--test files`. A template that Python refuses may do anything in ggro; one that Python renders must give the same text. Needs
jinja2 and nothing else of Python's.

    scripts/compare_jinja.py                  1500 templates
    scripts/compare_jinja.py --count 5000 --seed 7
    scripts/compare_jinja.py --sample FILE    writes a sample with Python's texts, which is tests/files/jinja_cases.json
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
from datetime import datetime, timezone
from pathlib import Path

import jinja2
import jinja2.ext
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

ROOT = Path(__file__).resolve().parent.parent
TIME = 1_722_038_400
NOW = datetime.fromtimestamp(TIME, timezone.utc).replace(tzinfo=None)


class Generation(jinja2.ext.Extension):
    """{% generation %} ... {% endgeneration %}: the content, in a scope of its own."""

    tags = {"generation"}

    def parse(self, parser):
        line = next(parser.stream).lineno
        body = parser.parse_statements(["name:endgeneration"], drop_needle=True)
        return nodes.CallBlock(self.call_method("content"), [], [], body).set_lineno(line)

    @jinja2.pass_eval_context
    def content(self, context, caller):
        return caller()


def raise_exception(message):
    raise jinja2.exceptions.TemplateError(message)


def tojson(x, ensure_ascii=False, indent=None, separators=None, sort_keys=False):
    return json.dumps(x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


ENVIRONMENT = ImmutableSandboxedEnvironment(
    trim_blocks=True, lstrip_blocks=True, extensions=[Generation, jinja2.ext.loopcontrols]
)
ENVIRONMENT.filters["tojson"] = tojson
ENVIRONMENT.globals["raise_exception"] = raise_exception
ENVIRONMENT.globals["strftime_now"] = NOW.strftime

# What the templates of the grammar look at. The first message holds a value of every kind.
MESSAGES = [
    {
        "role": "system",
        "content": "  Be brief.\nAnd kind. \n",
        "s": "Hello World",
        "t": "the quick-brown fox, jumps over\tthe lazy dog",
        "u": "Straße – 你好 \U0001f600 É",
        "q": "it's \"so\" \\ <b>&amp;</b>",
        "w": " \t padded\n\n",
        "n": 42,
        "m": -7,
        "f": 2.5,
        "g": 1e16,
        "z": 0,
        "yes": True,
        "no": False,
        "nil": None,
        "l": [3, 1, 2],
        "k": ["b", "A", "c", "a"],
        "e": [],
        "o": [{"name": "x", "v": 1}, {"name": "y", "v": 2}, {"name": "X", "v": 1}],
        "d": {"b": 1, "a": [1, 2.0, None, True, "q'q"], "C": {"items": "own"}},
    },
    {"role": "user", "content": "Why is the sky \"blue\"?"},
    {"role": "assistant", "content": "<think>\nLight.\n</think>\n\nRayleigh. "},
    {"role": "user", "content": "Thanks!"},
]
TOOLS = [{"type": "function", "function": {"name": "rain", "parameters": {"properties": {"city": {"type": "string"}}}}}]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}


def render(template):
    """The text, or the error as a list of one."""
    try:
        text = ENVIRONMENT.from_string(template).render(
            messages=json.loads(json.dumps(MESSAGES)),
            tools=TOOLS,
            documents=None,
            add_generation_prompt=True,
            **TOKENS,
        )
        text.encode()
        return text
    except Exception as error:  # whatever Python refuses
        return [f"{type(error).__name__}: {error}"]


class Grammar:
    """Draws templates. Deep ones are rare."""

    def __init__(self, seed):
        self.random = random.Random(seed)

    def one(self, *choices):
        choice = self.random.choice(choices)
        return choice() if callable(choice) else choice

    def chance(self, p):
        return self.random.random() < p

    # literals
    def literal(self):
        inside = "".join(
            self.one("a", "b", "Zz", " ", "é", "你", "0", ".", ",", "-", "/", "%", "<", "&", "\\n", "\\t", "\\\\", "\\'", '\\"',
                     "\\/", "\\a", "\\v", "\\x41", "\\u00e9", "\\101", "\\d", "\\\n", "\\U0001f600", "\n",
                     "\\é", "\\0", "{", "}", "#")
            for _ in range(self.random.randint(0, 5))
        )
        quote = self.one("'", '"')
        return quote + inside.replace("{%", "").replace("{{", "").replace("{#", "") + quote

    def text(self, depth=0):
        if depth > 2 or self.chance(0.3):
            return self.one(self.literal, *(f"m.{name}" for name in "stuqw"), "messages[1].content", "m.role", "bos_token")
        deeper = lambda: self.text(depth + 1)  # noqa: E731
        number = lambda: self.number(depth + 1)  # noqa: E731
        return self.one(
            lambda: f"{deeper()} ~ {self.any(depth + 1)}",
            lambda: f"{deeper()} + {deeper()}",
            lambda: f"({deeper()}){self.method()}",
            lambda: f"{self.atom(depth)}{self.method()}",
            lambda: f"{self.atom(depth)}|{self.filter()}",
            lambda: f"{self.atom(depth)}|{self.filter()}",
            lambda: f"{self.percent(depth)}",
            lambda: f"{self.percent(depth)}",
            lambda: f"{self.braces(depth)}",
            lambda: f"{self.braces(depth)}",
            lambda: f"({deeper()} if {self.truth(depth + 1)} else {deeper()})",
            lambda: f"{self.atom(depth)}[{self.one('0', '-1', '1:', ':-1', '::-1', '::2', '1:4', '-3:', '5:2:-1', '99:')}]",
            lambda: f"{self.atom(depth)} * {self.one('0', '2', '3')}",
            lambda: f"{self.list(depth + 1)}|join({self.one('', chr(39) + ', ' + chr(39), 'm.s')})",
            lambda: f"{self.any(depth + 1)}|string",
            lambda: f"{self.any(depth + 1)}|tojson{self.one('', '(indent=2)', '(ensure_ascii=true)', '(sort_keys=true)')}",
            lambda: f"({number()})|filesizeformat{self.one('', '(true)')}",
            lambda: f"{self.any(depth + 1)}|pprint",
            lambda: f"{self.one('missing', 'm.nil', 'm.s', self.literal)}|default({deeper()}{self.one('', ', true')})",
            lambda: f"dict(a={deeper()}, b=1)|xmlattr{self.one('', '(false)')}",
            lambda: f"{{'a b': {deeper()}, 'c': {number()}}}|urlencode",
        )

    def atom(self, depth):
        return self.one(lambda: f"({self.text(depth + 1)})", self.literal, *(f"m.{name}" for name in "stuqw"))

    def method(self):
        a = self.one("'o'", "' '", "'b'", "'é'", "','", "'x'", "'the'", "' \\n'", "'-'")
        b = self.one("'0'", "''", "'LL'", "'你'")
        n = self.one("0", "1", "2", "-1", "5", "30")
        kept = f".{self.one('strip', 'lstrip', 'rstrip')}({self.one('', a)})"
        return self.one(
            kept, kept, ".upper()", ".lower()", ".title()", ".capitalize()", ".swapcase()", ".casefold()",
            f".replace({a}, {b})", f".replace({a}, {b}, {n})", f".split({a})", ".split()", f".split({a}, {n})",
            f".split(sep={a}, maxsplit={n})", f".split(maxsplit={n})", f".split(None, {n})", f".rsplit({a}, {n})", ".rsplit()",
            f".rsplit(None, {n})", f".rsplit(maxsplit={n})", f".partition({a})", f".rpartition({a})", ".splitlines()",
            ".splitlines(true)", ".splitlines(keepends=true)", f".find({a})", f".rfind({a})", f".find({a}, {n})",
            f".index({a})", f".rindex({a})", f".count({a})", f".count({a}, {n})", f".startswith({a})",
            f".endswith({a})", f".startswith(({a}, {b}))", f".startswith({a}, {n})", f".zfill({n})", f".ljust({n})",
            f".rjust({n}, '*')", f".center({n})", f".center({n}, '.')", f".removeprefix({a})", f".removesuffix({a})",
            ".expandtabs()", f".expandtabs({n})", ".isalpha()", ".isalnum()", ".isdigit()", ".isdecimal()", ".isnumeric()",
            ".isspace()", ".isupper()", ".islower()", ".istitle()", ".isascii()", ".isidentifier()", ".isprintable()",
            ".encode()", ".encode('utf-8')|length", f".join(['a', 'b', m.s])", ".strip().split('\\n')[0]", ".split('</think>')[-1].lstrip('\\n')",
        )

    def filter(self):
        n = self.one("1", "4", "7", "20")
        return self.one(
            "upper", "lower", "title", "capitalize", "trim", "trim('oH ')", "trim(chars='a')", "length", "count", "first", "last",
            "reverse", "list", "int", "int(7)", "int(default=3)", "int(base=16)", "float", "float(1.5)", "wordcount",
            f"center({n})", "center(width=30)", f"truncate({n})", f"truncate({n}, true)", f"truncate({n}, end='.')",
            f"truncate({n}, true, '', 0)", f"truncate(length={n}, leeway=0)", f"wordwrap({n})", f"wordwrap({n}, false)",
            f"wordwrap(width={n}, wrapstring='|')", f"wordwrap({n}, break_on_hyphens=false)", "striptags", "urlencode", "escape",
            "e", "forceescape", "safe", "indent", f"indent({n})", f"indent({n}, true)", f"indent({n}, first=True)",
            f"indent({n}, true, true)", "indent('> ')", "indent(width='--', first=true)", "indent(blank=true)", "string",
            "replace('o', '0')", "replace('l', 'L', 1)", "replace('b', '', count=1)", "default('d')", "d('d', true)", "tojson",
            "pprint", "batch(3)|list", "slice(3)|list", "unique|list", "sort|join", "map('upper')|join", "select('in', 'abc')|list",
            "join('-')", "max", "min", "format", "e|e", "length|string|length",
        )

    def percent(self, depth):
        one = self.one
        spec = one("s", "r", "5s", "-5s|", ".2s", "a", "10.3s")
        number = one("d", "i", "5d", "-5d|", "05d", "+d", "x", "X", "o", "#x", "#o", ".3d", " d", "u", "f", ".2f", "8.3f", "e", "g",
                     ".3g", "G", "E", "+.1f", "010.2f", "#.0f", "s", "r", "5s", "%")
        value, count = self.any(depth + 1), self.number(depth + 1)
        return one(
            f"'a%{spec}b' % ({self.text(depth + 1)})",
            f"'%{number}' % ({count})",
            f"'%{number}' % {one('7', '-3', '2.5', 'm.n', 'm.g', 'true', '255', '0', '1e-7', '123456789.5')}",
            f"'%{spec} %{number}' % ({value}, {count})",
            f"'%(a){spec}%(b){number}%%' % {{'a': {value}, 'b': {count}}}",
            f"'%{spec}'|format({value})",
            f"'%{number}|%{spec}'|format({count}, {value})",
            f"'%(x)s-%(y)05.1f'|format(x={value}, y={count})",
            "'%*d|%-*s|%.*f' % (5, m.n, 6, m.role, 2, m.f)",
            f"'%s' % {one('m.l', 'm.d', 'm.nil', 'm.yes', '(m.l,)', '[1]')}",
            "'%c%c' % (65, 'b')",
        )

    def braces(self, depth):
        one = self.one
        text = one("", ":>8", ":<8", ":^9", ":*^9", ":.2", ":8.3", "!r", "!s", "!r:>12", "!a", ":s", ":_<4", ":05")
        number = one("", ":d", ":5", ":05d", ":+d", ":,", ":_", ":x", ":#x", ":#06x", ":b", ":o", ":c", ":.2f", ":,.2f", ":10.3f", ":e",
                     ":g", ":%", ":.1%", ":<6", ":^7", ":=+8d", ":>+6", ": d", ":*>8", "!r", "!s:>5", ":.3", ":012,", ":.3g", ":E")
        value, count = self.text(depth + 1), self.number(depth + 1)
        return one(
            f"'[{{{text}}}]'.format({value})",
            f"'[{{{number}}}]'.format({count})",
            f"'[{{{number}}}]'.format({one('7', '-3', '2.5', 'm.n', 'm.g', '1234567', '0', '1e-7', '1234567.891', 'true')})",
            f"'{{0}}{{1}}{{0{text}}}'.format({value}, {count})",
            f"'{{a{text}}}{{{{}}}}{{b{number}}}'.format(a={value}, b={count})",
            "'{0[b]} {0[a]} {1.role} {2[0]}'.format(m.d, messages[1], m.l)",
            "'{:{}}|{:{w}.{p}f}'.format(m.role, 9, m.f, w=8, p=1)",
            f"'{{}} {{}}'.format({self.any(depth + 1)}, {one('m.l', 'm.d', 'm.nil', 'm.yes')})",
        )

    def number(self, depth=0):
        if depth > 2 or self.chance(0.3):
            return self.one("m.n", "m.m", "m.f", "m.z", "0", "1", "7", "2.5", "0x1f", "1_000", "1e3", "m.g", "m.l[0]", "m.yes", ".5" * 0 + "0.5")
        a, b = (lambda: self.number(depth + 1)), (lambda: self.one("2", "3", "-2", "7", "2.5", "m.n"))
        return self.one(
            lambda: f"({a()} + {b()})", lambda: f"({a()} - {b()})", lambda: f"({a()} * {b()})", lambda: f"({a()} / {b()})",
            lambda: f"({a()} // {b()})", lambda: f"({a()} % {b()})", lambda: f"({a()} % {b()} % {b()})", lambda: f"(-{a()})",
            lambda: f"(+{a()})", lambda: f"{b()} * {a()} % {b()}", lambda: f"{self.one('2', 'm.n', '-3')} ** {self.one('2', '3', '0')}",
            lambda: f"{self.atom(depth)}|length", lambda: f"{self.list(depth + 1)}|length", lambda: f"{a()}|int", lambda: f"{a()}|float",
            lambda: f"{self.atom(depth)}|int", lambda: f"{self.atom(depth)}|float",
            lambda: f"({a()})|round{self.one('', '(1)', '(2)', '(0, ' + chr(39) + 'floor' + chr(39) + ')', '(1, ' + chr(39) + 'ceil' + chr(39) + ')')}",
            lambda: f"({a()})|abs", lambda: "m.l|sum", lambda: "m.o|sum(attribute='v')", lambda: "m.l|max", lambda: "m.l|min",
            lambda: f"({a()} if {self.truth(depth + 1)} else {a()})", lambda: f"{self.atom(depth)}.find('o')",
        )

    def list(self, depth=0):
        if depth > 2 or self.chance(0.3):
            return self.one("m.l", "m.k", "m.e", "[1, 'a', none, true]", "range(4)|list", "[]", "(1, 2)", "m.d.a")
        a = lambda: self.list(depth + 1)  # noqa: E731
        return self.one(
            lambda: f"[{self.any(depth + 1)}, {self.any(depth + 1)}]", lambda: f"({self.any(depth + 1)},)",
            lambda: f"({a()} + {self.one('[1]', 'm.k', '[]')})", lambda: "m.l * 2",
            lambda: f"({a()})[{self.one('1:', ':-1', '::-1', '::2', '-2:')}]", lambda: f"({a()})|reverse|list",
            lambda: "m.k|sort", lambda: "m.k|sort(case_sensitive=true)", lambda: "m.l|sort(reverse=true)", lambda: "m.k|unique|list",
            lambda: "m.o|map(attribute='name')|list", lambda: "m.o|selectattr('v', 'equalto', 1)|map(attribute='name')|list",
            lambda: "m.o|rejectattr('v', 'gt', 1)|list", lambda: "m.o|groupby('v')|list|length|string|list",
            lambda: "m.o|sort(attribute='name')|map(attribute='name')|list", lambda: "m.o|sort(attribute='v,name')|map(attribute='name')|list",
            lambda: f"{self.atom(depth)}.split()", lambda: f"{self.atom(depth)}|list", lambda: "m.d|list", lambda: "m.d.keys()|list",
            lambda: "m.d.values()|list", lambda: "m.d.items()|list", lambda: "m.d|dictsort",
            lambda: "m.d|dictsort(true)", lambda: "{'a': 2, 'B': 1}|dictsort(false, 'value')", lambda: "{'a': 2, 'B': 1}|dictsort(reverse=true)",
            lambda: "{'a': 2, 'B': 1}|dictsort(by='value', case_sensitive=true)", lambda: "m.d|items|list", lambda: f"({a()})|batch(2)|list",
            lambda: f"({a()})|batch(3, 'x')|list", lambda: f"({a()})|slice(2)|list", lambda: f"({a()})|slice(3, 'x')|list",
            lambda: f"({a()})|map('string')|list", lambda: f"({a()})|select|list", lambda: f"({a()})|reject('none')|list",
            lambda: f"({a()})|select('string')|list", lambda: f"({a()}).copy()", lambda: "m.k|map('upper')|list",
            lambda: "m.k|map('indent', 2, true)|list", lambda: "m.l|map('string')|map('center', 3)|list", lambda: "range(1, 9, 3)|list",
            lambda: "m.o|map(attribute='zz', default='-')|list", lambda: "m.k|select('in', ['a', 'b'])|list", lambda: "range(5, 0, -2)|list",
        )

    def truth(self, depth=0):
        if depth > 2 or self.chance(0.3):
            return self.one("true", "false", "m.yes", "m.no", "m.nil", "m.e", "m.s", "missing")
        a = lambda: self.truth(depth + 1)  # noqa: E731
        test = self.one("defined", "undefined", "none", "string", "number", "integer", "float", "boolean", "true", "false", "mapping",
                        "sequence", "iterable", "callable", "sameas(none)", "eq(1)", "equalto 'a'", "ne 3", "in [1, 'a', none]", "escaped")
        count = self.one("odd", "even", "divisibleby 3", "divisibleby(2)", "gt 2", "lt 2", "ge 7", "le(7)", "greaterthan 1", "lessthan(50)")
        return self.one(
            lambda: f"({a()} and {a()})", lambda: f"({a()} or {a()})", lambda: f"(not {a()})", lambda: f"({self.any(depth + 1)} is {test})",
            lambda: f"({self.any(depth + 1)} is not {test})", lambda: f"(({self.number(depth + 1)})|int is {count})",
            lambda: f"({self.number(depth + 1)} {self.one('==', '!=', '<', '<=', '>', '>=')} {self.number(depth + 1)})",
            lambda: f"({self.text(depth + 1)} {self.one('==', '!=', '<', 'in', 'not in')} {self.text(depth + 1)})",
            lambda: f"({self.any(depth + 1)} {self.one('in', 'not in')} {self.list(depth + 1)})", lambda: f"('a' {self.one('in', 'not in')} m.d)",
            lambda: f"({self.any(depth + 1)} {self.one('==', '!=')} {self.any(depth + 1)})", lambda: f"{self.atom(depth)} is {self.one('upper', 'lower')}",
            lambda: "(1 < m.n <= 42)", lambda: f"({self.one('range', 'm.s', 'cycler', 'm.d', 'dict', 'loop', 'joiner()')} is callable)",
            lambda: f"('{self.one('upper', 'nope', 'tojson', 'wordwrap')}' is filter)", lambda: f"('{self.one('odd', 'nope', 'callable')}' is test)",
        )

    def any(self, depth=0):
        return self.one(
            lambda: self.text(depth), lambda: self.text(depth), lambda: self.number(depth), lambda: self.list(depth), lambda: self.truth(depth),
            "m.d", "none", "m.nil", "m.d.copy()", "m.d.get('zz')", "m.d.get('b', 3)", "{'x': m.l, 2: 'y'}", "m.d['C']['items']", "m.d.C|items|list",
            "[m.q, m.u]", "{'k': m.q}", "m.k.index('c')", "m.l.count(1)", "(m.q, 1.0, m.g)", "m.missing",
        )

    # statements
    def template(self):
        text = lambda: self.one("a", " b ", "\n", "  ", "x\n  ", "<|im_start|>", "%", "{", "é", "}}", "-")  # noqa: E731
        out = lambda: f"{{{{{self.one(' ', '- ', ' ')}{self.any()}{self.one(' ', ' -', ' ')}}}}}"  # noqa: E731
        body = lambda: text() + out() + text()  # noqa: E731
        open_, close = (lambda: self.one("{% ", "{%- ", "{%+ ", "\n  {% ", "{%- ")), (lambda: self.one(" %}", " -%}", " %}\n", " %}\n  "))
        tag = lambda inside: open_() + inside + close()  # noqa: E731
        inside_loop = lambda: self.one(  # noqa: E731
            "{{ loop.index }}", "{{ loop.index0 % 2 }}", "{{ loop.revindex }}", "{{ loop.first }}", "{{ loop.last }}", "{{ loop.length }}",
            "{{ loop.cycle('x', 'y') }}", "{{ loop.previtem }}", "{{ loop.nextitem }}", "{{ loop.changed(x) }}", "{{ x }}", "{{ x }}",
            "{{ loop.depth }}", "{% if loop.index > 2 %}{% break %}{% endif %}", "{% if loop.first %}{% continue %}{% endif %}",
        )
        statement = self.one(
            body, body, body, body, body, body,
            lambda: tag(f"if {self.truth()}") + body() + tag("else") + body() + tag("endif"),
            lambda: tag(f"if {self.truth()}") + body() + tag(f"elif {self.truth()}") + body() + tag("endif"),
            lambda: tag(f"for x in {self.list()}") + inside_loop() + text() + inside_loop() + tag("endfor"),
            lambda: tag(f"for x in {self.list()} if x") + self.one("{{ x }}", "{{ loop.index }}") + tag("else") + text() + tag("endfor"),
            lambda: tag("for k, v in m.d.items()") + "{{ k }}={{ v }};" + inside_loop().replace("x", "k") + tag("endfor"),
            lambda: tag("for x in 1, m.s, none") + inside_loop() + tag("endfor"),
            lambda: tag("for x in [1, [2, [3]]] recursive") + "{{ loop(x) if x is iterable else x }}" + tag("endfor"),
            lambda: tag(f"set y = {self.any()}") + "{{ y }}" + body(),
            lambda: tag(f"set y, z = {self.any()}, {self.number()}") + "{{ z }}{{ y }}",
            lambda: tag("set y") + body() + tag("endset") + "[{{ y }}]{{ y|length }}",
            lambda: tag("set y | upper") + text() + tag("endset") + "[{{ y }}]",
            lambda: tag(f"set ns = namespace(a={self.any()}, b=0)") + tag("for x in m.l") + tag("set ns.b = ns.b + x") + tag("endfor") + "{{ ns.b }}{{ ns.a }}",
            lambda: tag(f"filter {self.filter()}") + text() + "a\nb" + tag("endfilter"),
            lambda: tag(f"with y = {self.any()}, z = 2") + "{{ y }}{{ z }}" + tag("endwith"),
            lambda: tag("macro f(a, b=2)") + "<{{ a }}|{{ b }}>" + tag("endmacro") + f"{{{{ f({self.any()}) }}}}{{{{ f(b=1, a={self.any()}) }}}}",
            lambda: tag("macro f(a)") + "<{{ a }}{{ varargs }}{{ kwargs }}>" + tag("endmacro") + f"{{{{ f() }}}}{{{{ f(1, {self.any()}, 3) }}}}{{{{ f(1, z={self.any()}) }}}}",
            lambda: tag("macro f()") + "{% for v in varargs %}{{ v }},{% endfor %}{{ kwargs.get('k') }}" + tag("endmacro") + f"{{{{ f({self.any()}, 2) }}}}{{{{ f(k=3) }}}}{{{{ f(*m.l, **{{'k': 4}}) }}}}",
            lambda: tag("macro f(a)") + "({{ caller(a) }})" + tag("endmacro") + tag("call(x) f(m.role)") + "{{ x }}" + text() + tag("endcall"),
            lambda: tag("set c = cycler('a', 1, none)") + "{{ c.next() }}{{ c.current }}{{ c.next() }}{{ c.next() }}{{ c.next() }}{% set _ = c.reset() %}{{ c.next() }}",
            lambda: tag("set j = joiner('; ')") + "{% for x in m.k %}{{ j() }}{{ x }}{% endfor %}{{ joiner()() }}",
            lambda: "{# " + text().replace("#", "") + " #}" + text() + "{#- x -#}" + body(),
            lambda: tag("raw") + "{{ x }}{% if %}" + tag("endraw") + body(),
            lambda: tag("generation") + body() + tag("endgeneration") + body(),
            lambda: f"{{{{ {self.any()}, {self.any()} }}}}",
            lambda: tag("for x in messages") + "{{ x.role }}: {{ x['content'] | trim }}" + text() + tag("endfor"),
            lambda: tag("autoescape true") + f"{{{{ m.q }}}}{{{{ m.q|safe }}}}{{{{ {self.text()} }}}}" + tag("endautoescape"),
            lambda: "{{ strftime_now('" + self.one("%d %b %Y", "%Y-%m-%d", "%A %-d %B, %H:%M", "%%|%j|%y") + "') }}",
        )
        return "{%- set m = messages[0] -%}\n" + statement + self.one("", "\n", "|", "\n\n")


# Whole templates of our own, in the layouts that published ones have.
WHOLE = [
    # ChatML with a default system message whose lines are joined, and tools.
    """{%- set default = "You are careful.\\
You answer in one line.\\n" %}
{%- if messages[0].role != 'system' %}{{ '<|im_start|>system\\n' + default + '<|im_end|>\\n' }}{% endif %}
{%- for message in messages %}
    {{- '<|im_start|>%s\\n' % message.role }}{{ message.content }}{{ '<|im_end|>\\n' }}
{%- endfor %}
{%- if tools %}
    {%- for tool in tools %}{{ tool | tojson(indent=4) | indent(4, first=True) }}{{ '\\n' }}{% endfor %}
{%- endif %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}
""",
    # Brackets, with roles that must alternate.
    """{{ bos_token }}
{%- set ns = namespace(turns=0) -%}
{%- for message in messages if message.role != 'system' -%}
    {%- if (message.role == 'user') != (ns.turns % 2 == 0) -%}{{ raise_exception('roles must alternate') }}{%- endif -%}
    {%- set ns.turns = ns.turns + 1 -%}
    {%- if message.role == 'user' -%}[INST] {{ message.content.strip() }} [/INST]
    {%- else -%} {{ message.content.split('</think>')[-1].strip() ~ eos_token }}{%- endif -%}
{%- endfor -%}
""",
    # A schema laid out by a macro, as models for tools have it.
    """{%- macro schema(properties, depth) -%}
{%- for name, about in properties.items() %}
{{ ('  ' * depth) ~ name ~ ': ' ~ about.type | default('any', true) | capitalize }}
{%- endfor %}
{%- endmacro -%}
{%- for tool in tools -%}
def {{ tool.function.name }}({{ tool['function']['parameters']['properties'] | list | join(', ') }}):
{{ schema(tool.function.parameters.properties, 2) | indent(2) }}
{%- endfor %}
{{ '{\\n' | indent(4, first=True) }}|
""",
    # Headers of Llama's kind, with the date.
    """{{- bos_token }}{%- set day = strftime_now('%d %b %Y') if strftime_now is defined else 'none' %}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
{%- if loop.first %}{{ 'Today Date: ' + day + '\\n\\n' }}{% endif %}
{{- message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}
""",
]

# The cases of public reports, one piece each.
PIECES = [
    '{{ "Paris.\\\nYour" }}', r'{{ "\/" }}', r'{{ "\a\v" }}', r'{{ "\101\x41\u00e9" }}', r"{{ '\d+\.' }}",
    "{{ '{\\n'|indent(4, first=True) }}|", "{{ 'a\\nb\\n'|indent(2) }}|", "{{ 'a\\n\\nb'|indent('> ') }}|", "{{ ''|indent }}|",
    "{{ 'x%sy' % 1 }}", "{{ '%s and %s' % ('a', 'b') }}", "{{ 7 % 3 }} {{ -7 % 3 }} {{ 7.5 % 2 }} {{ 7 % -3 }} {{ 6 * 7 % 5 }} {{ 2 + 7 % 5 }}",
    "{{ 'a.b.c'.rsplit('.', 1) }} {{ 'a b c'.rsplit() }} {{ 'a,b'.partition(',') }} {{ 'a,b,c'.rpartition(',') }}",
    "{{ 'hello'.rindex('l') }} {{ 'hello'.index('l') }} {{ '7'.zfill(3) }} {{ '-7'.zfill(4) }} {{ 'a'.ljust(3) }}| {{ 'a'.rjust(3) }} {{ 'a'.center(4, '*') }}",
    "{{ 'TestHook'.removeprefix('Test') }} {{ 'MiscTests'.removesuffix('Tests') }} {{ 'aBc'.swapcase() }} {{ 'Straße'.casefold() }} {{ 'a\\tb'.expandtabs(4) }}",
    "{{ '12'.isdecimal() }} {{ '²'.isdigit() }} {{ '²'.isdecimal() }} {{ 'a'.isascii() }} {{ 'Ab Cd'.istitle() }} {{ 'a1'.isidentifier() }}",
    "{{ 'é'.encode() }} {{ [1, 2, 3].index(2) }} {{ [1].copy() }} {{ {'a': 1}.copy() }} {{ 'a-b-c'.split(sep='-', maxsplit=1) }}",
    "{{ '{:,}'.format(1234567) }} {{ '{!r}'.format('x') }} {{ '%r'|format('x') }} {{ '%x'|format(255) }} {{ '{:>5}|{:<5}|{:^5}'.format(1, 'a', 'b') }}",
    "{{ 'a b c'|wordcount }} {{ 'ab'|center(6) }}| {{ 'a long text here'|truncate(9) }} {{ 'one two three'|wordwrap(5) }} {{ '<b>x</b>'|striptags }}",
    "{{ 'a b/c?'|urlencode }} {{ 1500|filesizeformat }} {{ {'a': 1, 'b': none}|xmlattr }} {{ [1]|random }} {{ {'b': 1, 'a': 2}|pprint }}",
    "{{ 'abc'|int }} {{ 'x'|float }} {{ '42.9'|int }} {{ none|int }} {{ '0x1f'|int(base=16) }} {{ ''|int(5) }} {{ {'a': 2, 'b': 1}|dictsort(false, 'value') }}",
    "{{ +1 }} {{ + 2.5 }} {{ 1 + +2 }} {{ 3 - +1 }} {{ +true }}",
    "{% macro m(a) %}{{ a }}{{ varargs }}{{ kwargs }}{% endmacro %}{{ m(1, 2, x=3) }}{{ m(1) }}",
    "{% set c = cycler('a', 'b') %}{{ c.next() }}{{ c.next() }}{{ c.next() }}{{ c.current }}{% set j = joiner(',') %}{{ j() }}a{{ j() }}b",
    "{{ range is callable }} {{ 'x' is callable }} {{ {} is callable }} {% macro f() %}{% endmacro %}{{ f is callable }}",
    "{{ {'items': 1}.items()|list }} {{ {'keys': 1}['keys'] }} {{ {'get': 2}.get('get') }}",
    "{{ [0.1, 1e16, 1e-7, 2.0, none, true, 'it\\'s'] }} {{ {'a': 1e22} }} {{ (1,) }} {{ [] ~ () ~ {} }} {{ [1e16]|join(' ') }} {{ 1e16 ~ '' }}",
    "{{ 1, 2 }} {{ ('a', ) }} {% for x in 1, 2, 3 %}{{ x }}{% endfor %}",
    "{{ '<a href=\"x\">' | e }} {{ \"it's\" | escape }} {{ '<b>' | safe }}", "{{ 'it\\'s'.title() }} {{ \"it's\" | title }} {{ 'foo-bar baz'|title }}",
    "{{ 'a\x0bb\\x0cc\\u2028d'.splitlines() }} {{ 'a\\r\\nb'.splitlines(true) }}", "{{ ' \\x1c a\\x1f'.strip() }}|{{ '\\x1ca'|trim }}|",
]


def cases(count, seed):
    grammar = Grammar(seed)
    templates = dict.fromkeys(PIECES + WHOLE)
    while len(templates) < count:
        template = grammar.template()
        templates[template] = None
    for template in templates:
        text = render(template)
        yield {"template": template, "expected": text} if isinstance(text, str) else {"template": template, "refused": text[0]}


def document(listed):
    return {"now": TIME, "messages": MESSAGES, "tools": TOOLS, "special_tokens": TOKENS, "cases": listed}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1500, help="templates (default 1500)")
    parser.add_argument("--seed", type=int, default=17)
    parser.add_argument("--sample", metavar="FILE", help="write a sample of cases that Python renders, and compare nothing")
    parser.add_argument("--show", type=int, default=40, help="differences and refusals to print")
    options = parser.parse_args()
    listed = list(cases(options.count, options.seed))
    rendered = [case for case in listed if "expected" in case]
    if options.sample:
        pieces = [case for case in rendered if case["template"] in PIECES + WHOLE and "|random" not in case["template"]]
        rest = [case for case in rendered if case not in pieces and len(case["expected"]) < 2000]
        with open(options.sample, "w") as file:
            json.dump(document(pieces + rest[:400]), file, indent=1, ensure_ascii=False)
            file.write("\n")
        print(len(pieces) + min(400, len(rest)), "cases")
        return 0
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "cases.json"
        path.write_text(json.dumps(document(listed)))
        environment = dict(os.environ, GGRO_JINJA_CASES=str(path))
        command = ["cargo", "test", "--release", "--test", "files", "renders_given_cases", "--", "--ignored"]
        run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
        results = Path(f"{path}.out")
        if run.returncode != 0 or not results.exists():
            print(run.stdout[-4000:], run.stderr[-4000:], sep="\n")
            return 1
        results = json.loads(results.read_text())
    different = [(case, result) for case, result in zip(listed, results) if case.get("expected", result.get("text")) != result.get("text") and "text" in result]
    refused = [(case, result) for case, result in zip(listed, results) if "expected" in case and "error" in result]
    lenient = sum("refused" in case and "text" in result for case, result in zip(listed, results))
    for title, found in [("DIFFERENT", different), ("REFUSED", refused)]:
        for case, result in found[: options.show]:
            print(f"{title}\n  {case['template']!r}\n  python {case['expected']!r}\n  ggro   {result.get('text', result.get('error'))!r}")
    print(
        f"{len(listed)} templates, of which Python renders {len(rendered)}: {len(different)} differ, {len(refused)} are refused; "
        f"{lenient} of the {len(listed) - len(rendered)} that Python refuses are rendered"
    )
    return 1 if different or refused else 0


if __name__ == "__main__":
    sys.exit(main())
