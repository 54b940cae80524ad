use super::*;

fn layer(pairs: &[(&'static str, &str)], place: &str) -> Layer {
    pairs.iter().map(|(name, value)| (*name, Given { value: (*value).into(), place: place.into() })).collect()
}

fn environment(pairs: &[(&str, &str)]) -> Result<Layer, ConfigError> {
    from_environment(pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())))
        .map(|(layer, _)| layer)
}

fn file(text: &str) -> Result<Layer, ConfigError> {
    from_file(Path::new("shoal.toml"), text)
}

#[test]
fn flags_win_over_environment_over_file_over_default() {
    let file = file("data_dir = '/file'\nhttp = '127.0.0.1:1'\nqueries_max = 1\nws_idle_ms = 7").unwrap();
    let environment = environment(&[
        ("SHOAL_HTTP", "127.0.0.1:2"),
        ("SHOAL_QUERIES_MAX", "2"),
        ("HOME", "/root"),
        ("SHOAL_URL", "x"),
    ])
    .unwrap();
    let flags = layer(&[("http", "127.0.0.1:3")], "--http");
    let config = resolve(&[flags, environment, file]).unwrap();
    assert_eq!(config.node.http_address.port(), 3);
    assert_eq!(config.server.address.port(), 3);
    assert_eq!(config.node.queries_max, 2);
    assert_eq!(config.node.data_dir, Path::new("/file"));
    assert_eq!(config.server.limits.ws_idle, Duration::from_millis(7));
    assert_eq!(config.node.cluster_address.to_string(), "127.0.0.1:9176");
}

#[test]
fn every_default_in_the_table_is_the_default() {
    let defaults: Layer = SETTINGS
        .iter()
        .filter(|setting| !matches!(setting.name, "http_workers" | "scan_slices_max" | "compactions_max" | "data_dir"))
        .map(|setting| (setting.name, Given { value: setting.default.into(), place: setting.name.into() }))
        .collect();
    let dir = layer(&[("data_dir", "/x")], "--data-dir");
    let mut written = resolve(&[dir.clone(), defaults]).unwrap();
    let mut silent = resolve(&[dir]).unwrap();
    // Where each was given.
    written.node.settings.clear();
    silent.node.settings.clear();
    assert_eq!(format!("{written:?}"), format!("{silent:?}"));
}

#[track_caller]
fn refused(result: Result<impl Sized, ConfigError>, place: &str, words: &[&str]) {
    let error = result.err().expect("must be refused");
    assert_eq!(error.place, place);
    for word in words {
        assert!(error.to_string().contains(word), "{error} lacks {word}");
    }
}

#[test]
fn unknown_keys_are_named_with_their_place() {
    refused(
        file("data_dir = 'x'\n\n  ws_idel_ms = 5\n"),
        "shoal.toml:3:3",
        &["unknown key 'ws_idel_ms'", "did you mean 'ws_idle_ms'"],
    );
    refused(file("data_dir = 'x'\nhttp ="), "shoal.toml:2:7", &[]);
    refused(file("queries_max = [1]"), "shoal.toml:1:15", &["takes a number"]);
    refused(environment(&[("SHOAL_DATADIR", "x")]), "SHOAL_DATADIR", &["did you mean 'data_dir'"]);
}

#[test]
fn a_variable_of_another_program_is_passed_over_and_named() {
    let variables = [("SHOAL_BIN", "/opt/shoal"), ("SHOAL_QUERIES_MAX", "2"), ("PATH", "/bin")];
    let (layer, strangers) = from_environment(variables.map(|(name, value)| (name.into(), value.into()))).unwrap();
    assert_eq!(layer.into_keys().collect::<Vec<_>>(), ["queries_max"]);
    assert_eq!(strangers, ["SHOAL_BIN"]);
}

#[test]
fn values_that_make_no_sense_are_named() {
    let with = |name: &'static str, value: &str| resolve(&[layer(&[("data_dir", "/x"), (name, value)], "here")]);
    refused(resolve(&[]), "data_dir", &["is not given"]);
    refused(with("queries_max", "many"), "here", &["queries_max is 'many'"]);
    refused(with("queries_max", "0"), "here", &["the least is 1"]);
    refused(with("http", "localhost"), "here", &["no address"]);
    refused(with("http", "0.0.0.0:9175"), "here", &["not a loopback address", "authenticated"]);
    refused(with("cluster", "192.168.1.4:9176"), "here", &["not a loopback address"]);
    refused(with("http", "127.0.0.1:9176"), "http", &["also the cluster address"]);
    refused(with("cluster_secret", ""), "here", &["empty"]);
    refused(with("ingest_body_bytes_max", "999999999999"), "ingest_body_bytes_max", &["ingest_memory_bytes_max"]);
    assert_eq!(with("join", "127.0.0.1:1, 127.0.0.1:2").unwrap().node.join.len(), 2);
    assert!(with("http", "[::1]:9175").is_ok());
}
