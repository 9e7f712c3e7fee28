"""The server as OpenAI's own client sees it: python3 client.py path/to/ggro

Starts the server on the demo pair at a free port, asks it through the `openai` package, and stops it.
"""

import re
import signal
import subprocess
import sys
import urllib.request

import openai

MESSAGES = [{"role": "user", "content": "Tell me a story about a box."}]


def start(binary, *args):
    """The server and its address, once it is ready."""
    command = [binary, "serve", "--device", "cpu", "--port", "0", "--api-key", "secret", *args]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in server.stderr:
        found = re.search(r"listening on (http://[^\s\"]+)", line)
        if found:
            break
    else:
        sys.exit("the server does not listen")
    for line in server.stderr:
        if '"event":"ready"' in line:
            break
    return server, found.group(1)


def refused(kind, call):
    try:
        call()
    except kind as error:
        return error
    raise AssertionError(f"expected {kind.__name__}")


def check(client, base):
    models = [model.id for model in client.models.list()]
    assert models[0] == "demo" and "demo:ggro" in models, models

    # Chat: whole and streamed, by every model.
    for model in models:
        ask = dict(model=model, messages=MESSAGES, max_completion_tokens=30, temperature=0)
        whole = client.chat.completions.create(**ask)
        text = whole.choices[0].message.content
        assert text and whole.choices[0].finish_reason == "length"
        assert whole.usage.completion_tokens == 30
        assert whole.usage.total_tokens == whole.usage.prompt_tokens + 30
        chunks = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
        pieces = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "".join(pieces) == text, model
        assert chunks[-1].choices == [] and chunks[-1].usage.completion_tokens == 30
        assert all(chunk.usage is None for chunk in chunks[:-1])

    # Several answers, seeds, stops.
    ask = dict(model="demo", messages=MESSAGES, max_tokens=30, temperature=1, seed=5, n=3)
    texts = [[choice.message.content for choice in client.chat.completions.create(**ask).choices] for _ in range(2)]
    assert texts[0] == texts[1] and len(set(texts[0])) == 3
    plain = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=30, temperature=0)
    stop = plain.choices[0].message.content[12:16]
    cut = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=30, temperature=0, stop=[stop])
    assert cut.choices[0].message.content == plain.choices[0].message.content.split(stop)[0]
    assert cut.choices[0].finish_reason == "stop"

    # Log-probabilities, with entropies beside them.
    asked = client.chat.completions.create(
        model="demo", messages=MESSAGES, max_tokens=10, temperature=0, logprobs=True, top_logprobs=2
    )
    content = asked.choices[0].logprobs.content
    assert len(content) == 10 and all(token.logprob <= 0 and len(token.top_logprobs) == 2 for token in content)
    assert all(token.model_extra["entropy"] >= 0 for token in content)

    # Completions of texts and ids.
    text = client.completions.create(model="demo", prompt="Once upon a time", max_tokens=8, temperature=0, logprobs=1)
    assert len(text.choices[0].logprobs.tokens) == 8 and text.usage.completion_tokens == 8
    both = client.completions.create(model="demo", prompt=["Once upon a time", "The dog"], max_tokens=8, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1] and both.choices[0].text == text.choices[0].text
    stream = client.completions.create(
        model="demo", prompt="Once upon a time", max_tokens=8, temperature=0, stream=True
    )
    assert "".join(chunk.choices[0].text for chunk in stream) == text.choices[0].text

    # What is the method's own passes through.
    body = {"ggro": {"num_refinement_steps": 3, "trace": True}}
    guided = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=60, extra_body=body)
    trace = guided.model_extra["ggro"]["trace"]
    assert max(len(segment["candidates"]) for segment in trace["segments"]) == 3
    assert guided.usage.model_extra["ggro"]["segments"] == len(trace["segments"])
    flat = {"vllm_xargs": {"ggro_num_refinement_steps": 3}}
    again = client.chat.completions.create(model="demo", messages=MESSAGES, max_tokens=60, extra_body=flat)
    assert again.choices[0].message.content == guided.choices[0].message.content

    # Errors by their types.
    def ask(**more):
        return lambda: client.chat.completions.create(**{"model": "demo", "messages": MESSAGES, "max_tokens": 4, **more})

    assert refused(openai.NotFoundError, ask(model="gpt-4")).code == "model_not_found"
    assert refused(openai.BadRequestError, ask(max_tokens=10**6)).code == "context_length_exceeded"
    assert refused(openai.BadRequestError, ask(temperature=-1)).param == "temperature"
    assert refused(openai.BadRequestError, ask(n=10**9)).param == "n"
    wrong = client.with_options(api_key="wrong")
    refused(openai.AuthenticationError, lambda: wrong.models.list())
    assert urllib.request.urlopen(base + "/health").status == 200


def main():
    server, base = start(sys.argv[1])
    try:
        with openai.OpenAI(base_url=base + "/v1", api_key="secret", max_retries=0, timeout=60) as client:
            check(client, base)
    finally:
        server.send_signal(signal.SIGTERM)
        # What is left is read, so that it is not kept waiting by its own log.
        server.stderr.read()
        code = server.wait(timeout=60)
    assert code == 0, code
    print(f"openai {openai.__version__}: every check passed")


main()
