use crate::{directory, read_json, refused};
use ggro::files::chat::{ChatTemplate, Conversation, Date, Message, SpecialTokens};
use serde_json::{Value, json};
use std::time::Instant;

fn template(source: &str) -> ggro::Result<ChatTemplate> {
    let (_dir, files) = directory(&[("chat_template.jinja", source.as_bytes())]);
    ChatTemplate::load(&files).map(Option::unwrap)
}

fn user(content: &str) -> Vec<Message> {
    vec![Message { role: "user".into(), content: content.into() }]
}

fn render(source: &str) -> ggro::Result<String> {
    template(source)?.render(&user("Hello"), true)
}

/// Every case was rendered by Jinja2 itself: see `make_chat_cases.py`.
#[test]
fn renders_as_python_does() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/chat_cases.json");
    let file = read_json(&path);
    let mut failures = Vec::new();
    for case in file["cases"].as_array().unwrap() {
        let mut config = json!({ "chat_template": case["template"] });
        for (name, token) in case["special_tokens"].as_object().unwrap() {
            config[name] = token.clone();
        }
        let (_dir, files) = directory(&[("tokenizer_config.json", config.to_string().as_bytes())]);
        let messages: Vec<Message> = serde_json::from_value(case["messages"].clone()).unwrap();
        let rendered = ChatTemplate::load(&files).and_then(|template| {
            let mut template = template.unwrap();
            template.pin_time(file["now"].as_i64().unwrap());
            template.render(&messages, case["add_generation_prompt"].as_bool().unwrap())
        });
        let name = &case["name"];
        match (rendered, &case["expected"], &case["refusal"]) {
            (Ok(text), Value::String(expected), _) if text == *expected => {}
            (Err(e), Value::Null, Value::String(refusal)) if e.to_string().contains(refusal) => {}
            (rendered, expected, refusal) => {
                let rendered = rendered.map_err(|e| e.to_string());
                failures.push(format!("{name}\n found    {rendered:?}\n expected {expected} {refusal}"));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What a case of `scripts/compare_jinja.py` is in ggro: the text or the error.
fn given_case(file: &Value, case: &Value) -> Result<String, String> {
    let mut config = json!({ "chat_template": case["template"] });
    for (name, token) in file["special_tokens"].as_object().unwrap() {
        config[name] = token.clone();
    }
    let (_dir, files) = directory(&[("tokenizer_config.json", config.to_string().as_bytes())]);
    let variables = serde_json::Map::new();
    let messages = file["messages"].as_array().unwrap();
    let conversation = Conversation { messages, tools: Some(&file["tools"]), variables: &variables };
    let rendered = ChatTemplate::load(&files).and_then(|template| {
        let mut template = template.unwrap();
        template.pin_time(file["now"].as_i64().unwrap());
        template.render_conversation(&conversation, true)
    });
    rendered.map_err(|e| e.to_string())
}

/// A sample of `scripts/compare_jinja.py`, whose texts Jinja2 wrote.
#[test]
fn templates_of_a_grammar_print_what_jinja_prints() {
    let file = read_json(&std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/files/jinja_cases.json"));
    let cases = file["cases"].as_array().unwrap();
    let differs = cases.iter().filter_map(|case| {
        let found = given_case(&file, case);
        let same = found.as_deref().ok() == case["expected"].as_str();
        (!same).then(|| format!("{}\n found    {found:?}\n expected {}", case["template"], case["expected"]))
    });
    let differs: Vec<String> = differs.collect();
    assert!(cases.len() >= 400 && differs.is_empty(), "{} of {}:\n{}", differs.len(), cases.len(), differs.join("\n"));
}

/// Renders the cases of the file that `GGRO_JINJA_CASES` names, for `scripts/compare_jinja.py`.
#[test]
#[ignore = "needs cases from scripts/compare_jinja.py"]
fn renders_given_cases() {
    let path = std::env::var("GGRO_JINJA_CASES").unwrap();
    let file = read_json(std::path::Path::new(&path));
    let results = file["cases"].as_array().unwrap().iter().map(|case| match given_case(&file, case) {
        Ok(text) => json!({ "text": text }),
        Err(error) => json!({ "error": error }),
    });
    std::fs::write(format!("{path}.out"), Value::from_iter(results).to_string()).unwrap();
}

#[test]
fn named_templates() {
    let list = json!([
        { "name": "rag", "template": "{% never parsed %}" },
        { "name": "default", "template": "{{ bos_token }}{{ eos_token }}{{ pad_token is defined }}" },
        { "name": "tool_use", "template": "{% for t in tools %}{{ t|tojson }}{% endfor %}" },
    ]);
    let map = json!({ "rag": "{%", "default": list[1]["template"], "tool_use": list[2]["template"] });
    let tools = json!([{ "name": "rain" }]);
    let none = serde_json::Map::new();
    let with_tools = Conversation { messages: &[], tools: Some(&tools), variables: &none };
    let without = Conversation { tools: None, ..with_tools };
    for named in [&list, &map] {
        let config = json!({
            "chat_template": named,
            "bos_token": { "content": "<s>", "lstrip": false },
            "eos_token": "</s>",
            "pad_token": null,
        });
        let (_dir, files) = directory(&[("tokenizer_config.json", config.to_string().as_bytes())]);
        let template = ChatTemplate::load(&files).unwrap().unwrap();
        assert_eq!(template.render(&[], false).unwrap(), "<s></s>False");
        assert_eq!(template.render_conversation(&without, false).unwrap(), "<s></s>False");
        assert_eq!(template.render_conversation(&with_tools, false).unwrap(), r#"{"name": "rain"}"#);
    }
    // The only one is for tools: it loads, and is used with them.
    let config = json!({ "chat_template": [list[0], list[2]] }).to_string();
    let (_dir, files) = directory(&[("tokenizer_config.json", config.as_bytes())]);
    let template = ChatTemplate::load(&files).unwrap().unwrap();
    assert_eq!(template.render_conversation(&with_tools, false).unwrap(), r#"{"name": "rain"}"#);
    refused(template.render(&[], false), &["\"default\"", "\"tool_use\"", "found rag, tool_use"]);
    // Files win over the configuration, all of it.
    let more = b"{{ tools|length }} tools\n";
    let config = json!({ "chat_template": list }).to_string();
    let all: [(&str, &[u8]); 3] = [
        ("tokenizer_config.json", config.as_bytes()),
        ("chat_template.jinja", b"file"),
        ("additional_chat_templates/tool_use.jinja", more),
    ];
    let (_dir, files) = directory(&all);
    let template = ChatTemplate::load(&files).unwrap().unwrap();
    assert_eq!(template.render_conversation(&with_tools, false).unwrap(), "1 tools");
    assert_eq!(template.render_conversation(&without, false).unwrap(), "file");
    let (_dir, files) = directory(&[all[0], all[2]]);
    let template = ChatTemplate::load(&files).unwrap().unwrap();
    assert_eq!(template.render_conversation(&with_tools, false).unwrap(), "1 tools");
    assert!(template.render(&[], false).is_err());
    for wrong in [json!(5), json!([{ "name": "default" }]), json!(["x"]), json!({ "default": 5 })] {
        let config = json!({ "chat_template": wrong }).to_string();
        let (_dir, files) = directory(&[("tokenizer_config.json", config.as_bytes())]);
        refused(ChatTemplate::load(&files), &["tokenizer_config.json", "`chat_template`: expected a text, a list"]);
    }
}

/// Every special token that `transformers` knows by a name is a variable.
#[test]
fn special_tokens_are_variables() {
    let config = json!({
        "chat_template": "{{ sep_token }}{{ cls_token }}{{ mask_token }}{{ image_token }}{{ audio_token }}{{ add_bos_token }}",
        "sep_token": "<sep>", "cls_token": { "content": "<cls>" }, "mask_token": "<mask>", "audio_token": "<audio>",
        "extra_special_tokens": { "image_token": "<image>" }, "add_bos_token": true,
    });
    let (_dir, files) = directory(&[("tokenizer_config.json", config.to_string().as_bytes())]);
    let template = ChatTemplate::load(&files).unwrap().unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "<sep><cls><mask><image><audio>");
}

/// What an assistant thought has several names; templates find it under theirs.
#[test]
fn thoughts_have_every_name() {
    let source = "{% for m in messages %}{{ m.thinking }}|{{ m.reasoning_content }}|{{ m|length }};{% endfor %}";
    let messages = json!([
        { "role": "assistant", "content": "", "reasoning": "a" },
        { "role": "assistant", "content": "", "thinking": "b", "reasoning_content": null },
        { "role": "assistant", "content": "", "reasoning_content": "c", "thinking": "d" },
        { "role": "assistant", "content": "" },
    ]);
    let none = serde_json::Map::new();
    let conversation = Conversation { messages: messages.as_array().unwrap(), tools: None, variables: &none };
    let text = template(source).unwrap().render_conversation(&conversation, false).unwrap();
    assert_eq!(text, "a|a|5;b|b|4;d|c|4;||2;");
}

/// What the command line sets for all conversations.
#[test]
fn a_template_is_set_up() {
    let source = "{{ strftime_now('%d %b %Y %H:%M') }} {{ enable_thinking }}";
    let mut set_up = template(source).unwrap();
    set_up.pin_date("2024-07-26".parse().unwrap());
    let variables = |text: &str| serde_json::from_str(text).unwrap();
    set_up.set_variables(variables(r#"{ "enable_thinking": false }"#)).unwrap();
    assert_eq!(set_up.render(&[], false).unwrap(), "26 Jul 2024 00:00 False");
    let own = variables(r#"{ "enable_thinking": true }"#);
    let conversation = Conversation { messages: &[], tools: None, variables: &own };
    assert_eq!(set_up.render_conversation(&conversation, false).unwrap(), "26 Jul 2024 00:00 True");
    assert!(set_up.set_variables(variables(r#"{ "messages": 1 }"#)).is_err());
    for text in ["", "2024-7-26", "26.07.2024", "2024-02-30", "+024-07-26", "2024-07-26 "] {
        assert!(text.parse::<Date>().is_err(), "{text}");
    }
    let today = Date::today().to_string();
    assert_eq!(today.parse::<Date>().unwrap().to_string(), today);

    let (dir, files) = directory(&[
        ("own.jinja", b"{{ bos_token }}{{ eos_token }}\n"),
        ("tokenizer_config.json", br#"{ "bos_token": "<s>" }"#),
    ]);
    let tokens = SpecialTokens::load(&files).unwrap();
    let own = ChatTemplate::from_file(&dir.path().join("own.jinja"), tokens.clone()).unwrap();
    assert_eq!(own.render(&[], false).unwrap(), "<s>");
    assert_eq!(own.sources().collect::<Vec<_>>(), [("default", "{{ bos_token }}{{ eos_token }}\n")]);
    refused(ChatTemplate::from_file(&dir.path().join("none.jinja"), tokens), &["none.jinja"]);
}

#[test]
fn where_a_template_comes_from() {
    let (_dir, files) = directory(&[]);
    assert!(ChatTemplate::load(&files).unwrap().is_none());
    let (_dir, files) = directory(&[("tokenizer_config.json", b"{}")]);
    assert!(ChatTemplate::load(&files).unwrap().is_none());
    let config = br#"{ "chat_template": "config" }"#;
    let (_dir, files) = directory(&[("tokenizer_config.json", config), ("chat_template.jinja", b"file\n")]);
    let template = ChatTemplate::load(&files).unwrap().unwrap();
    assert_eq!(template.render(&[], false).unwrap(), "file");

    for (config, expected) in
        [(r#"{ "chat_template": "x", "eos_token": 5 }"#, "`eos_token`"), ("[]", "JSON object"), ("{", "JSON object")]
    {
        let (_dir, files) = directory(&[("tokenizer_config.json", config.as_bytes())]);
        refused(ChatTemplate::load(&files), &["tokenizer_config.json", expected]);
    }
    let (_dir, files) = directory(&[("chat_template.jinja", b"\xff")]);
    refused(ChatTemplate::load(&files), &["chat_template.jinja", "UTF-8"]);
}

#[test]
fn the_templates_own_refusal_reaches_the_user() {
    let error = render("{{ raise_exception('no system message here') }}").unwrap_err();
    assert!(matches!(error, ggro::Error::Invalid(_)));
    assert!(error.to_string().contains("no system message here"));
    let nested = "{% macro m() %}{{ raise_exception('from inside') }}{% endmacro %}{{ m() }}";
    refused(render(nested), &["from inside"]);
}

#[test]
fn broken_templates() {
    refused(render("{% if %}"), &["chat_template.jinja", "line 1", "syntax error"]);
    refused(render("a\n{% for m in messages %}"), &["line 2", "syntax error"]);
    refused(render("{{ messages | nonsense }}"), &["unknown filter", "nonsense"]);
    refused(render("\n{{ nonsense() }}"), &["line 2", "nonsense"]);
    refused(render("{{ missing.attribute }}"), &["undefined"]);
    refused(render("{% generation %}"), &["syntax error"]);
    refused(render("{% include 'other' %}"), &["other"]);
    refused(render(&"x".repeat(1 << 20)), &["at most 131072 bytes", "found 1048576"]);
}

#[test]
fn endless_and_enormous_templates_end_quickly() {
    let loops = "{% for i in range(100000) %}{% for j in range(100000) %}BODY{% endfor %}{% endfor %}";
    let with = |body: &str| loops.replace("BODY", body);
    let kilobyte = "x".repeat(1000);
    let doubling = "{% set ns = namespace(x='aa') %}{% for i in range(99) %}{% set ns.x = STEP %}{% endfor %}";
    let hostile = [
        with(""),
        with("{{ i }}"),
        with(&kilobyte),
        with("{% set x = [i] * 100000 %}"),
        "{{ 'a' * 10000000000 }}".into(),
        "{{ ('a' * 90000000) | length }}".into(),
        "{{ 'a' | indent(10000000000, true) }}".into(),
        "{{ '%0999999999d' | format(1) }}".into(),
        "{{ 'a'.join(range(99999)) }}".repeat(99),
        doubling.replace("STEP", "ns.x + ns.x"),
        doubling.replace("STEP", "ns.x ~ ns.x"),
        doubling.replace("STEP", "ns.x | replace('a', 'aa')"),
        doubling.replace("STEP", "ns.x.replace('a', ns.x)"),
        doubling.replace("STEP", "[ns.x, ns.x]") + "{{ ns.x }}",
        doubling.replace("STEP", "[ns.x, ns.x]") + "{{ ns.x | tojson }}",
        doubling.replace("STEP", "[ns.x, ns.x]") + "{{ ns.x | string }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}".into(),
        "{% include 'chat template' %}{% include 'chat template' %}".into(),
        "{% for i in [1, 2] recursive %}{{ loop([1, 2]) }}{% endfor %}".into(),
    ];
    for source in &hostile {
        let start = Instant::now();
        let result = render(source);
        let shown: String = source.chars().take(120).collect();
        let error = result.err().unwrap_or_else(|| panic!("rendered: {shown}"));
        assert!(start.elapsed().as_secs() < 5, "{:?}: {shown}", start.elapsed());
        assert!(error.to_string().contains("chat_template.jinja"), "{error}");
    }
    refused(render(&hostile[0]), &["chat_template.jinja", "does not end within its limit"]);
    refused(render(&hostile[2]), &["writes more than", "the limit"]);
}

fn survives(source: &str, shown: &str) {
    let start = Instant::now();
    let _ = render(source);
    assert!(start.elapsed().as_secs() < 5, "{:?}: {shown}", start.elapsed());
}

/// Recursion over what a template nests or spells deeply must not overflow a stack.
#[test]
fn deep_nesting_is_survived() {
    let nest = "{% set ns = namespace(x=[]) %}{% for i in range(50000) %}{% set ns.x = WRAP %}{% endfor %}";
    for wrap in ["[ns.x]", "{'k': ns.x}", "(ns.x,)"] {
        let nest = nest.replace("WRAP", wrap);
        for end in [
            "",
            "{{ ns.x }}",
            "{{ ns.x | tojson }}",
            "{{ ns.x | string | length }}",
            "{{ ns.x == [ns.x] }}",
            "{{ [ns.x, [ns.x]] | sort | length }}",
            "{{ [ns.x, [ns.x]] | unique | list | length }}",
            "{{ {ns.x: 1} | length }}",
            "{{ missing.attribute }}",
            "{{ ns.x.nothing() }}",
        ] {
            survives(&format!("{nest}{end}"), end);
        }
    }
    for (open, middle, close) in [
        ("{{ ", "1+", "1 }}"),
        ("{{ ", "(", "1 }}"),
        ("{{ ", "[", "1 }}"),
        ("{{ ", "not ", "1 }}"),
        ("{{ ", "-", "1 }}"),
        ("{{ 1", "|string", " }}"),
        ("{{ x", ".a", " }}"),
        ("{{ x", "()", " }}"),
        ("{{ 1", " if 1 else 1", " }}"),
        ("{{ ", "1 if 1 else ", "1 }}"),
        ("{{ 1", "<1", " }}"),
        ("{{ 1", "~1", " }}"),
        ("{{ 1", "**1", " }}"),
        ("{{ x", "+1", " }}"),
        ("{{ x", "~1", " }}"),
        ("{{ ", "1+x+", "1 }}"),
        ("{{ ", "1,", "1 }}"),
        ("{{ {", "1:1,", "} }}"),
        ("", "{% set x = 1 %}", ""),
        ("", "{{ x }}", ""),
        ("{{ 1", " and 1", " }}"),
        ("", "{% if 1 %}", ""),
        ("{% if 1 %}", "{% elif 1 %}", "{% endif %}"),
        ("", "{% for x in [1] %}", ""),
        ("", "{% generation %}", ""),
        ("", "{{", ""),
        ("", "{%", ""),
        ("", "{#", ""),
    ] {
        let count = (if middle.contains('%') { 120 << 10 } else { 4000 }) / middle.len();
        survives(&format!("{open}{}{close}", middle.repeat(count)), middle);
    }
}

/// What comes with a conversation besides texts: functions, calls of them, variables of the template's own.
#[test]
fn conversations_with_everything() {
    use ggro::files::chat::check_variable;
    use ggro::files::checkpoint::Files;
    let of = |model: &str| {
        let files = Files::Dir(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/corpus").join(model));
        ChatTemplate::load(&files).unwrap().unwrap()
    };
    let tools = json!([{ "type": "function", "function": { "name": "weather", "parameters": { "type": "object" } } }]);
    let messages = json!([
        { "role": "user", "content": "Rain?" },
        { "role": "assistant", "content": "",
          "tool_calls": [{ "type": "function", "function": { "name": "weather", "arguments": { "city": "Bern" } } }] },
        { "role": "tool", "content": "no" },
    ]);
    let none = serde_json::Map::new();
    let messages = messages.as_array().unwrap();
    let all = Conversation { messages, tools: Some(&tools), variables: &none };
    let text = of("Qwen2.5-0.5B-Instruct").render_conversation(&all, true).unwrap();
    // As Python's Jinja writes JSON.
    let function = r#"{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}"#;
    assert!(text.contains(function) && text.ends_with("<|im_start|>assistant\n"), "{text}");
    let without = Conversation { tools: None, ..all };
    assert!(!of("Qwen2.5-0.5B-Instruct").render_conversation(&without, true).unwrap().contains(function));

    // The plain way of rendering and this one are the same where they can be.
    let plain = [Message { role: "user".into(), content: "Why \u{1f600}?".into() }];
    let same = [json!({ "role": "user", "content": "Why \u{1f600}?" })];
    let bare = Conversation { messages: &same, tools: None, variables: &none };
    for model in ["Qwen2.5-0.5B-Instruct", "Qwen3-0.6B", "Llama-3.1-8B-Instruct", "Mistral-7B-Instruct-v0.3"] {
        let template = of(model);
        for prompt in [false, true] {
            let rendered = template.render_conversation(&bare, prompt).unwrap();
            assert_eq!(rendered, template.render(&plain, prompt).unwrap(), "{model}");
        }
    }
    let mut thinking = serde_json::Map::new();
    thinking.insert("enable_thinking".to_string(), json!(false));
    let quiet = Conversation { variables: &thinking, ..bare };
    let text = of("Qwen3-0.6B").render_conversation(&quiet, true).unwrap();
    assert!(text.ends_with("<think>\n\n</think>\n\n"), "{text}");

    for (name, value) in [("messages", json!("x")), ("range", json!(1)), ("__init__", json!(1)), ("deep", json!([1]))] {
        assert!(check_variable(name, &value).is_err(), "{name}");
        let mut variables = serde_json::Map::new();
        variables.insert(name.to_string(), value);
        let refused = Conversation { variables: &variables, ..bare };
        assert!(of("Qwen3-0.6B").render_conversation(&refused, true).is_err(), "{name}");
    }
}
