//! Each wrong file, and word for word what is said of it.

use rehome_spec::Migration;

const GOOD: &str = r#"[migration]
name = "shop"
source = { cloud = "aliyun", region = "cn-hangzhou" }
target = { cloud = "tencent", region = "ap-shanghai" }

[[objects]]
name = "media"
source = { url = "oss://media", access_key = "env:A", secret_key = "env:B" }
target = { url = "cos://media", access_key = "env:C", secret_key = "env:D" }
application = { source = { access_key = "env:E", secret_key = "env:F" }, target = { access_key = "env:E", secret_key = "env:F" } }

[[services]]
name = "api"
listen = "0.0.0.0:8080"
source = "http://10.0.0.5:8000"
target = "http://10.8.0.5:8000"
uses = ["media"]
"#;

/// [`GOOD`] with one text replaced (which must be there), or with lines added at the end.
const DATABASE: &str = "[[databases]]\nname = \"orders\"\nfence = \"none\"\n\
    source = { url = \"postgres://rehome@10.0.0.5/shop\" }\ntarget = { url = \"postgres://rehome@10.8.0.5/shop\" }";

fn with(from: &str, to: &str) -> String {
    assert!(GOOD.contains(from), "{from}");
    GOOD.replacen(from, to, 1)
}

fn plus(more: &str) -> String {
    format!("{GOOD}{more}\n")
}

/// [`GOOD`] with lines for its service, and a second service with others on the same port.
fn shared(first: &str, second: &str) -> String {
    let service = format!(
        "[[services]]\nname = \"b\"\nlisten = \"0.0.0.0:8080\"\nsource = \"http://a\"\ntarget = \"http://b\"\n{second}\n"
    );
    with("uses =", &format!("{first}\nuses =")) + &service
}

fn said(text: &str) -> String {
    Migration::parse(text, "rehome.toml").expect_err("the file is wrong").render(false)
}

macro_rules! wrong {
    ($($name:ident: $text:expr;)*) => {
        $(#[test] fn $name() { insta::assert_snapshot!(said(&$text)); })*
    };
}

#[test]
fn the_file_all_others_are_made_from_is_right() {
    let loaded = Migration::parse_with_warnings(GOOD, "rehome.toml").expect("right");
    assert_eq!(loaded.warnings, []);
}

wrong! {
    // syntax
    not_toml: with("name = \"shop\"", "name = shop");
    quote_not_closed: with("name = \"shop\"", "name = \"shop");
    the_same_key_twice: with("name = \"shop\"", "name = \"shop\"\nname = \"shop\"");
    not_a_config_at_all: "{\"migration\": {\"name\": \"shop\"}}";
    ends_too_early: "[migration]\nname = \"shop\"\nsource =";

    // keys
    misspelt_key: with("url = \"oss://media\", access_key", "url = \"oss://media\", acess_key");
    key_of_another_table: with("name = \"media\"", "name = \"media\"\nlisten = \"0.0.0.0:1\"");
    key_nobody_knows: with("name = \"api\"", "name = \"api\"\nfrobnicate = true");
    unknown_table: plus("[[servises]]\nname = \"x\"");
    missing_keys: plus("[[services]]\nname = \"admin\"");
    missing_migration: "[[objects]]\nname = \"a\"\n";
    missing_in_inline_table: with("source = { cloud = \"aliyun\", region = \"cn-hangzhou\" }", "source = { region = \"cn-hangzhou\" }");

    // types
    one_bracket_instead_of_two: plus("[workers]\nname = \"w\"");
    two_brackets_instead_of_one: plus("[[switch]]\nmax_pause = \"2s\"");
    number_for_a_string: with("name = \"shop\"", "name = 7");
    string_for_a_list: with("uses = [\"media\"]", "uses = \"media\"");
    string_for_a_table: with("source = { cloud = \"aliyun\", region = \"cn-hangzhou\" }", "source = \"aliyun\"");
    date_for_a_time: plus("[switch]\nsoak = 1979-05-27");
    negative_number: plus("[switch.hold]\nrequests = -1");
    unknown_word: plus("[switch]\nsessions = \"clsoe\"");

    // units
    time_without_unit: plus("[switch]\nmax_pause = 2");
    time_in_words: plus("[switch]\nmax_pause = \"2 seconds\"\nsoak = \"one day\"");
    time_too_long: plus("[switch]\nsoak = \"99999d\"");
    size_in_lower_case: plus("[switch.hold]\nbytes = \"64mb\"");
    size_for_a_time: plus("[switch]\nmax_pause = \"64MiB\"");

    // secrets
    plain_text_secret: with("secret_key = \"env:B\"", "secret_key = \"hunter2hunter2\"");
    empty_secret: with("secret_key = \"env:B\"", "secret_key = \"\"");
    no_secret: with(", secret_key = \"env:B\"", "");
    no_keys_at_all: with(", access_key = \"env:A\", secret_key = \"env:B\"", "");
    bad_variable: with("secret_key = \"env:B\"", "secret_key = \"env:B-C\"");
    command_with_open_quote: with("secret_key = \"env:B\"", "secret_key = \"cmd:pass 'x\"");
    secret_in_an_address: with("oss://media", "oss://me:hunter2@media");

    // addresses
    unknown_scheme: with("oss://media", "gs://media");
    misspelt_scheme: with("oss://media", "oos://media");
    web_address_for_a_store: with("oss://media", "https://media.oss-cn-hangzhou.aliyuncs.com");
    store_without_bucket: with("oss://media", "oss:///media");
    store_with_query: with("oss://media", "oss://media?region=x");
    folder_with_two_slashes: with("oss://media", "file://srv/media");
    not_an_address: with("oss://media", "media");
    no_region: with(", region = \"cn-hangzhou\"", "");
    endpoint_without_scheme: with("url = \"oss://media\"", "url = \"oss://media\", endpoint = \"oss-cn-hangzhou.aliyuncs.com\"");
    service_with_path: with("http://10.0.0.5:8000", "http://10.0.0.5:8000/api?x=1");
    service_without_scheme: with("http://10.0.0.5:8000", "10.0.0.5:8000");
    listen_on_a_name: with("0.0.0.0:8080", "localhost:8080");
    listen_on_a_port: with("0.0.0.0:8080", ":8080");
    health_without_slash: with("uses =", "health = \"healthz\"\nuses =");

    // how it fits together
    two_parts_of_one_name: plus("[[objects]]\nname = \"media\"\nsource = { url = \"file:///a\" }\ntarget = { url = \"file:///b\" }");
    bouncers_that_cannot_be_driven: plus(&format!(
        "{DATABASE}\n[[databases.pgbouncers]]\nadmin = \"postgres://rehome@10.0.0.9:6432/pgbouncer\"\nfile = \"rehome.ini\"\noptions = \"a\\nb\"\n\
         [[databases.pgbouncers]]\nadmin = \"postgres://rehome:x@127.0.0.1:6432/pgbouncer\"\nfile = \"/a\"\n\
         [[databases.pgbouncers]]\nadmin = \"postgres://rehome@127.0.0.1:6432/shop\"\nfile = \"/a\"\ngateway = \"edge\""
    ));
    bouncer_before_another_engine: plus(&format!(
        "{}\n[[databases.pgbouncers]]\nadmin = \"postgres://rehome@127.0.0.1:6432/pgbouncer\"\nfile = \"/a\"",
        DATABASE.replace("postgres://", "mariadb://")
    ));
    front_door_for_nobody: plus(&format!("{DATABASE}\n[databases.front]\nlisten = \"0.0.0.0:8080\"\ntls = [{{ chain = \"a.pem\" }}]"));
    front_door_of_another_engine: plus(&format!(
        "{}\n[databases.front]\nlisten = \"\"",
        DATABASE.replace("postgres://", "mariadb://")
    ));
    front_door_in_plain_text: plus(&format!("{DATABASE}\n[databases.front]\nlisten = \"0.0.0.0:5432\""));
    two_services_on_one_port: plus("[[services]]\nname = \"b\"\nlisten = \"0.0.0.0:8080\"\nsource = \"http://a\"\ntarget = \"http://b\"");
    uses_no_part: with("uses = [\"media\"]", "uses = [\"medai\", \"orders\"]");
    steps_that_fall: plus("[switch]\nread_steps = [5, 1, 100, 0]");
    deadline_beyond_hold: plus("[switch]\nin_flight_deadline = \"20s\"\nmax_pause = \"15s\"");
    hold_below_default_deadline: plus("[switch.hold]\nage = \"1s\"");
    nothing_may_wait: plus("[switch]\nhold = { requests = 0 }");
    same_place: with("cos://media", "oss://media");
    same_service: with("http://10.8.0.5:8000", "http://10.0.0.5:8000/");
    two_into_one: plus("[[objects]]\nname = \"b\"\nsource = { url = \"file:///a\" }\ntarget = { url = \"cos://media/sub\", access_key = \"env:C\", secret_key = \"env:D\" }");
    fence_by_command_without_one: with("[[services]]", "[objects.fence]\nby = \"command\"\n\n[[services]]");
    fence_keys_of_another_kind: with("[[services]]", "[objects.fence]\nclose = [\"x\"]\n\n[[services]]");
    nothing_moves: "[migration]\nname = \"a\"\nsource = { cloud = \"x\" }\ntarget = { cloud = \"y\" }\n";
    bad_names: with("name = \"shop\"", "name = \"my shop/../x\"");
    bad_client_key: with("uses =", "clients = [\"session\"]\nuses =");
    bad_method: with("uses =", "reads = [\"get\"]\nuses =");
    remote_without_token: plus("[[gateways]]\nname = \"g\"\ncontrol = \"/g.sock\"\nremote = { address = \"10.0.0.6:7443\", tls = { chain = \"/c.pem\", key = \"file:/c.key\" } }");
    remote_nowhere: plus("[[gateways]]\nname = \"g\"\ncontrol = \"/g.sock\"\ntoken = \"env:T\"\nremote = { address = \"0.0.0.0:7443\", listen = \"edge\", tls = { chain = \"c.pem\", key = \"file:/c.key\" } }");
    relative_socket: plus("[[gateways]]\nname = \"g\"\ncontrol = \"gateway.sock\"");

    // listeners
    certificate_in_no_folder: with("uses =", "tls = [{ chain = \"shop.pem\", key = \"file:shop.key\" }, { chain = \"\", key = \"-----BEGIN PRIVATE KEY-----\" }]\nuses =");
    certificate_without_key: with("uses =", "tls = [{ chain = \"/etc/shop.pem\" }]\nuses =");
    certificate_as_a_text: with("uses =", "tls = \"/etc/shop.pem\"\nuses =");
    hosts_that_are_none: with("uses =", "hosts = [\"https://shop.example\", \"*.*.example\", \"shop..example\", \"bücher.example\", \"\"]\nuses =");
    paths_that_are_none: with("uses =", "paths = [\"api\", \"/api/*\", \"/a%20b\", \"/a//b\", \"/a/../b\", \"/a?b\"]\nuses =");
    networks_that_are_none: with("uses =", "trusted_proxies = [\"lb.example.com\", \"10.0.0.1/8\", \"10.0.0.0/40\"]\nuses =");
    proxy_protocol_without_trust: with("uses =", "proxy_protocol = true\nuses =");
    no_connection_at_all: with("uses =", "connections_per_client = 0\nuses =");
    size_of_a_body_without_unit: with("uses =", "max_body = 1000\nuses =");
    tls_for_one_of_two: shared("", "paths = [\"/b\"]\ntls = [{ chain = \"/etc/b.pem\", key = \"env:B\" }]");
    proxy_protocol_for_one_of_two: shared("trusted_proxies = [\"10.0.0.0/8\"]\nproxy_protocol = true", "paths = [\"/b\"]\nconnections_per_client = 3");
    the_same_host_twice: shared("hosts = [\"Shop.example.\", \"a.example\"]", "hosts = [\"b.example\", \"shop.example\"]");
    the_same_path_twice: shared("paths = [\"/api\"]", "paths = [\"/x\", \"/api/\"]");
    the_same_host_and_path_twice: shared("hosts = [\"*.a.example\"]\npaths = [\"/api\"]", "hosts = [\"*.a.example\"]\npaths = [\"/api\"]");

    // several at once, in the order of the file
    several_at_once: with("name = \"shop\"", "nmae = \"shop\"").replace("\"env:D\"", "\"hunter2\"").replace("0.0.0.0:8080", "8080").replace("[\"media\"]", "[\"meda\"]");
    tabs_and_wide_characters: "[migration]\nname = \"a\"\n\tsource = { cloud = \"杭州\", regoin = \"x\" }\ntarget = { cloud = \"y\" }\n";
}

#[test]
fn warnings_do_not_stop_the_file() {
    let text = with("uses =", "reads = [\"GET\", \"POST\"]\nuses =")
        .replace("url = \"oss://media\"", "url = \"oss://media\", endpoint = \"http://oss.example.com\"")
        .replace("[[services]]", "[objects.fence]\nby = \"none\"\n\n[[services]]");
    let loaded = Migration::parse_with_warnings(&text, "rehome.toml").expect("usable");
    insta::assert_snapshot!(loaded.render_warnings(false));
}

#[test]
fn services_share_a_port_when_something_tells_them_apart() {
    for (first, second) in [
        ("hosts = [\"a.example\"]", "hosts = [\"b.example\"]"),
        ("hosts = [\"a.example\"]", ""),
        ("hosts = [\"a.example\"]", "hosts = [\"*.example\"]"),
        ("", "paths = [\"/api/\"]"),
        ("paths = [\"/api/v2\"]", "paths = [\"/api\"]"),
        ("hosts = [\"a.example\"]\npaths = [\"/api\"]", "hosts = [\"b.example\"]\npaths = [\"/api\"]"),
        ("proxy_protocol = false\ntrusted_proxies = []", "paths = [\"/b\"]"),
    ] {
        let loaded = Migration::parse_with_warnings(&shared(first, second), "rehome.toml");
        let loaded = loaded.unwrap_or_else(|error| panic!("{first} | {second}: {}", error.render(false)));
        assert_eq!(loaded.warnings, [], "{first} | {second}");
    }
}

#[test]
fn trusting_everybody_is_worth_a_word() {
    let text = with("uses =", "trusted_proxies = [\"::/0\"]\nuses =");
    let loaded = Migration::parse_with_warnings(&text, "rehome.toml").expect("usable");
    insta::assert_snapshot!(loaded.render_warnings(false));
}

#[test]
fn colours_only_when_asked_for() {
    let error = Migration::parse("x = 1", "rehome.toml").expect_err("wrong");
    assert!(error.render(true).contains("\x1b[1;31merror\x1b[0m"));
    assert!(!error.render(false).contains('\x1b'));
}

#[test]
fn endless_problems_are_counted_not_shown() {
    let text: String = (0..500).map(|n| format!("unknown_{n} = 1\n")).collect();
    let shown = said(&text);
    assert!(shown.lines().count() < 300 && shown.contains("more"), "{shown}");
}
