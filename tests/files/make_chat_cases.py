"""Writes chat_cases.json: what Python's Jinja2 renders, in an environment set up as transformers sets up its own.

Run in this folder with jinja2 installed: python3 make_chat_cases.py
"""

import json
import sys
from pathlib import Path

import jinja2

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "scripts"))
from compare_jinja import ENVIRONMENT, TIME  # noqa: E402


class Refusal(jinja2.exceptions.TemplateError):
    pass


def raise_exception(message):
    raise Refusal(message)


# One environment serves both scripts; only what a template's own exception is differs.
ENVIRONMENT.globals["raise_exception"] = raise_exception


def render(template, messages, add_generation_prompt, tokens):
    return ENVIRONMENT.from_string(template).render(
        messages=messages, tools=None, documents=None, add_generation_prompt=add_generation_prompt, **tokens
    )


HELLO = [{"role": "user", "content": "Hello there!"}]
SYSTEM = [{"role": "system", "content": "  Be brief.\n"}] + HELLO
TALK = SYSTEM + [
    {"role": "assistant", "content": "<think>\nA greeting.\n</think>\n\nHi! "},
    {"role": "user", "content": "Why is the sky \"blue\"? \\ <b>&</b> 'é' \u4f60\u597d \U0001f600\t\x01\x7f"},
]
TOKENS = {"bos_token": "<s>", "eos_token": "</s>"}
CONVERSATIONS = [("hello", HELLO), ("system", SYSTEM), ("talk", TALK)]

# Whole templates in the layout of four families, written for these tests.
LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}
    {%- if strftime_now is defined %}
        {%- set date_string = strftime_now("%d %b %Y") %}
    {%- else %}
        {%- set date_string = "26 Jul 2024" %}
    {%- endif %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{#- The first message may be the system's. #}
{%- if messages[0]['role'] == 'system' %}
    {%- set system_message = messages[0]['content']|trim %}
    {%- set messages = messages[1:] %}
{%- else %}
    {%- set system_message = "" %}
{%- endif %}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" }}
{%- if tools is not none %}
    {{- "Environment: ipython\\n" }}
{%- endif %}
{{- "Cutting Knowledge Date: December 2023\\n" }}
{{- "Today Date: " + date_string + "\\n\\n" }}
{{- system_message }}
{{- "<|eot_id|>" }}
{%- for message in messages %}
    {%- if not (message.role == 'ipython' or message.role == 'tool' or 'tool_calls' in message) %}
        {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n'+ message['content'] | trim + '<|eot_id|>' }}
    {%- elif 'tool_calls' in message %}
        {{- raise_exception("no tools here") }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""
QWEN25 = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
{%- else %}
    {%- if messages[0]['role'] == 'system' %}
        {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
    {%- else %}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
    {%- endif %}
{%- endif %}
{%- for message in messages %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) or (message.role == "assistant" and not message.tool_calls) %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "tool" %}
        {%- if (loop.index0 == 0) or (messages[loop.index0 - 1].role != "tool") %}
            {{- '<|im_start|>user' }}
        {%- endif %}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
QWEN3 = """{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0].content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step=true, last_query=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step and message.role == "user" and message.content is string and not(message.content.startswith('<tool>') and message.content.endswith('</tool>')) %}
        {%- set ns.multi_step = false %}
        {%- set ns.last_query = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- if message.content is string %}{%- set content = message.content %}{%- else %}{%- set content = '' %}{%- endif %}
    {%- if (message.role == "user") or (message.role == "system" and not loop.first) %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == "assistant" %}
        {%- set reasoning = '' %}
        {%- if message.reasoning_content is string %}
            {%- set reasoning = message.reasoning_content %}
        {%- elif '</think>' in content %}
            {%- set reasoning = content.split('</think>')[0].rstrip('\\n').split('<think>')[-1].lstrip('\\n') %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query and (loop.last or (not loop.last and reasoning)) %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n' + reasoning.strip('\\n') + '\\n</think>\\n\\n' + content.lstrip('\\n') }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- set user_messages = loop_messages | selectattr("role", "equalto", "user") | list %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
        {{- raise_exception("After the optional system message, roles must alternate user/assistant/user/assistant/...") }}
    {%- endif %}
    {%- set ns.index = ns.index + 1 %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {%- if loop.last and system_message is defined %}
            {{- "[INST] " + system_message + "\\n\\n" + message["content"] + "[/INST]" }}
        {%- else %}
            {{- "[INST] " + message["content"] + "[/INST]" }}
        {%- endif %}
    {%- elif message["role"] == "assistant" %}
        {{- " " + message["content"]|trim + eos_token}}
    {%- endif %}
{%- endfor %}
"""

# One piece of the dialect each, rendered with the longest conversation.
PIECES = [
    # values
    "{{ true }} {{ false }} {{ none }} {{ 1 }} {{ -3 }} {{ 1.0 }} {{ 0.1 }} {{ 1e16 }} {{ 1.5e-7 }} {{ 123456789.125 }}",
    "{{ [1, 'a', none, true, \"it's\"] }} {{ {'a': 1, 'b': [none]} }} {{ (1, 'x') }} {{ [] }} {{ {} }}",
    "{{ missing }}|{{ messages[0].missing }}|{{ missing is defined }}|{{ messages is defined }}",
    "{{ none ~ true ~ 1 ~ 'a' ~ missing }} {{ [none, true, 1.5] | join('-') }} {{ true | string }} {{ none | string }}",
    "{{ 'a' * 3 }} {{ [0] * 2 }} {{ 7 // 2 }} {{ 7 / 2 }} {{ 4 / 2 }} {{ -7 % 3 }} {{ 2 ** 10 }} {{ -7 // 2 }}",
    "{{ '%s is %d' | format('x', 3) }} {{ 'a' if missing else 'b' }} {{ 'x' if true }}",
    "{{ 1 == 1.0 }} {{ 'a' < 'b' }} {{ 1 in [1, 2] }} {{ 'ell' in 'hello' }} {{ 'role' in messages[0] }} {{ 3 not in [1] }}",
    "{{ true and 'x' }} {{ '' or 'y' }} {{ not '' }} {{ [] or 'empty' }} {{ 1 < 2 < 3 }} {{ none is none }}",
    "{{ 'line\\nnext\\ttab' }} {{ 'a\\\\b' }} {{ \"double 'single'\" }} {{ '\\u00e9' }}",
    "{{ messages | length }} {{ messages[-1].role }} {{ messages[1:] | length }} {{ messages[:-1] | length }} {{ 'hello'[1:3] }} {{ 'hello'[::-1] }}",
    "{{ range(3) | list }} {{ range(1, 6, 2) | list }} {{ [3, 1, 2] | sort }} {{ [1, 2] + [3] }} {{ [1, 2, 3] | sum }}",
    # strings
    "[{{ messages[0].content | trim }}] [{{ messages[0].content.strip() }}] [{{ 'xxaxx'.strip('x') }}] [{{ '  a '.lstrip() }}] [{{ ' a  '.rstrip() }}]",
    "{{ 'a,b,,c'.split(',') }} {{ ' a  b '.split() }} {{ 'a,b,c'.split(',', 1) }} {{ 'abc'.split('b')[-1] }}",
    "{{ 'hello'.startswith('he') }} {{ 'hello'.endswith('lo') }} {{ 'hello'.upper() }} {{ 'HELLO'.lower() }} {{ 'hello world'.title() }} {{ 'hello'.capitalize() }}",
    "{{ 'hello'.replace('l', 'L') }} {{ 'hello' | replace('l', 'L') }} {{ 'hello'.find('l') }} {{ 'hello'.count('l') }} {{ '-'.join(['a', 'b']) }}",
    "{{ 'a1'.isalnum() }} {{ '12'.isdigit() }} {{ 'ab'.isalpha() }} {{ 'a\\nb'.splitlines() }} {{ '{} and {}'.format(1, 'x') }}",
    "{{ 'hello' | upper }} {{ 'hello' | first }} {{ 'hello' | last }} {{ 'x' | default('d') }} {{ missing | default('d') }} {{ '' | default('d', true) }} {{ 'ab' | list }}",
    "{{ 'a\\nb' | indent(2) }} {{ 'a\\nb' | indent(4, true) }} {{ ' x ' | length }} {{ '5' | int + 1 }} {{ 'abc' | reverse }} {{ 3.7 | int }} {{ 2.5 | round }}",
    # tests
    "{{ 'a' is string }} {{ 1 is number }} {{ {} is mapping }} {{ [] is iterable }} {{ [] is sequence }} {{ 2 is even }} {{ 3 is odd }} {{ true is boolean }} {{ 1 is integer }} {{ 1.0 is float }}",
    "{{ 1 is eq 1 }} {{ 1 is ne 2 }} {{ 1 is lt 2 }} {{ 'a' is in ['a'] }} {{ 6 is divisibleby 3 }} {{ 'a' is lower }} {{ missing is undefined }} {{ false is false }} {{ true is true }}",
    # dicts and namespaces
    "{% set d = {'b': 1, 'a': 2} %}{% for k, v in d.items() %}{{ k }}={{ v }};{% endfor %}{{ d.keys() | list }} {{ d.values() | list }} {{ d.get('a') }} {{ d.get('z') }} {{ d.get('z', 0) }} {{ d | dictsort }} {{ d | items | list }}",
    "{% set ns = namespace(found=false, n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.found = true %}{% set ns.n = ns.n + 1 %}{% endif %}{% endfor %}{{ ns.found }} {{ ns.n }}",
    "{% set x = 1 %}{% for m in messages %}{% set x = 2 %}{% endfor %}{{ x }}{% if true %}{% set x = 3 %}{% endif %}{{ x }}",
    # loops
    "{% for m in messages %}{{ loop.index }}/{{ loop.index0 }}/{{ loop.revindex }}/{{ loop.length }}{% if loop.first %} first{% endif %}{% if loop.last %} last{% endif %} {{ loop.previtem.role if loop.previtem is defined else '-' }} {{ loop.nextitem.role if not loop.last else '-' }}\n{% endfor %}",
    "{% for m in messages if m.role != 'system' %}{{ m.role }} {{ loop.index }}{% if not loop.last %}, {% endif %}{% else %}none{% endfor %}",
    "{% for m in [] %}x{% else %}empty{% endfor %}{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "{% for m in messages %}{{ loop.cycle('a', 'b') }}{% endfor %} {% for k in {'x': 1} %}{{ k }}{% endfor %} {% for a, b in [(1, 2), (3, 4)] %}{{ a + b }} {% endfor %}",
    "{{ messages | map(attribute='role') | join(', ') }} {{ messages | selectattr('role', 'equalto', 'user') | list | length }} {{ messages | rejectattr('role', 'in', ['user']) | map(attribute='role') | list }} {{ ['b', 'a', 'b'] | unique | list }}",
    # macros, sets, calls
    "{% macro turn(role, text='x') %}<{{ role }}>{{ text | trim }}</{{ role }}>{% endmacro %}{{ turn('a') }}{{ turn(role='b', text=' y ') }}{% for m in messages %}{{ turn(m.role, m.content) }}{% endfor %}",
    "{% set block %}a {{ messages | length }} b{% endset %}[{{ block }}] {% set a, b = 1, 2 %}{{ a }}{{ b }} {% filter upper %}loud{% endfilter %} {% with z = 5 %}{{ z }}{% endwith %}",
    "{% raw %}{{ not rendered }} {% if %}{% endraw %} {# a comment #}x{#- another -#} y",
    # whitespace
    "a\n  {% if true %}\n  b\n  {% endif %}\nc\n",
    "a\n  {%- if true -%}\n  b  \n  {%- endif %}\nc\n\n",
    "a {%+ if true %} b {% endif +%}\n c {{- ' d ' -}}  e\n   {# comment #}\nf\n",
    "{% for m in messages -%}\n   {{ m.role }}\n{%- endfor %}\n",
    "  {% set x = 1 %}  \n\t{% set y = 2 %}\nz\r\n{% if x %}\r\nw{% endif %}\r\n",
    "\n\n{{ 'x' }}\n\n",
    # the tag of transformers
    "{% for m in messages %}{% if m.role == 'assistant' %}{% generation %}{{ m.content }}{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}",
    "a\n  {% generation %}\n  b\n  {% endgeneration %}\nc\n",
    "a  {%- generation -%}  b  {%- endgeneration -%}  c",
    "{% set x = 1 %}{% generation %}{{ x }}{% set x = 2 %}{{ x }}{% endgeneration %}{{ x }}",
    "{% for m in messages %}{%- generation %}{{ loop.index }}{{ m.role }}{% endgeneration -%}{% endfor %}{{ '{% generation %}' }}{# {% generation %} #}",
    # JSON
    "{{ messages | tojson }}",
    "{{ messages[3].content | tojson }} {{ messages[3].content | tojson(ensure_ascii=true) }}",
    "{{ {'b': [1, 2.0, none, true], 'a': {}, 'c': []} | tojson(indent=2) }}",
    "{{ {'b': 1, 'a': [1, {'z': 0, 'y': 1}]} | tojson(sort_keys=true) }} {{ {'a': 1, 'b': [1]} | tojson(separators=(',', ':')) }} {{ [1, [2]] | tojson(indent='\\t') }} {{ [] | tojson(indent=4) }} {{ [1] | tojson(indent=0) }}",
    "{{ {1: 'a', true: 'b', none: 'c', 1.5: 'd'} | tojson }} {{ 'a' | tojson }} {{ 1e16 | tojson }} {{ 0.1 | tojson }} {{ (1, 2) | tojson }} {{ [1] | tojson(true) }}",
    # dates
    "{{ strftime_now('%d %b %Y') }} {{ strftime_now('%Y-%m-%d %H:%M:%S') }} {{ strftime_now('%A, %B %-d, %Y') }} {{ strftime_now('%j %U %p %I %y %%') }} {{ strftime_now('100% sure %f') }}",
    "{{ strftime_now('[%z] [%Z] %e %a %c') }}",
    # refusals
    "{{ raise_exception('only ' ~ messages | length ~ ' messages') }}",
]


def case(name, template, messages, add_generation_prompt, tokens=TOKENS):
    entry = {
        "name": name,
        "template": template,
        "messages": messages,
        "add_generation_prompt": add_generation_prompt,
        "special_tokens": tokens,
    }
    try:
        entry["expected"] = render(template, messages, add_generation_prompt, tokens)
    except Refusal as refusal:
        entry["refusal"] = refusal.message
    return entry


def main():
    cases = []
    for name, template in [("llama", LLAMA), ("qwen2.5", QWEN25), ("qwen3", QWEN3), ("mistral", MISTRAL)]:
        for conversation, messages in CONVERSATIONS:
            for prompt in [False, True]:
                cases.append(case(f"{name} {conversation} {prompt}", template, messages, prompt))
    cases.append(case("mistral out of turn", MISTRAL, HELLO + HELLO, False))
    for number, template in enumerate(PIECES):
        cases.append(case(f"piece {number}", template, TALK, False))
    cases.append(case("no tokens", "[{{ bos_token }}]{{ pad_token is defined }}", HELLO, False, {}))
    with open("chat_cases.json", "w") as file:
        json.dump({"now": TIME, "cases": cases}, file, indent=1)
        file.write("\n")
    print(len(cases), "cases")


main()
