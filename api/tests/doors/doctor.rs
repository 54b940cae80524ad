//! `shoal doctor` over directories of real nodes, sound and with planted damage.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cluster::nodes;
use crate::command::{ends, shoal};

fn doctor(arguments: &[&str]) -> std::process::Output {
    shoal(&[&["doctor"], arguments].concat(), &[], "")
}

/// All files below a directory with their content.
fn files(dir: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut files = BTreeMap::new();
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files.append(&mut self::files(&path)),
            false => drop(files.insert(path.clone(), fs::read(&path).unwrap())),
        }
    }
    files
}

fn copy(from: &Path, to: &Path) {
    for (path, bytes) in files(from) {
        let path = to.join(path.strip_prefix(from).unwrap());
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }
}

fn named(dir: &Path, part: &str) -> PathBuf {
    files(dir).into_keys().find(|path| path.to_str().unwrap().contains(part)).unwrap()
}

fn json(arguments: &[&str]) -> Value {
    serde_json::from_slice(&doctor(&[&["--format", "json"], arguments].concat()).stdout).unwrap()
}

/// The directory of a node that was killed, with rows in a segment and in the log of one table, and what it looks like.
fn killed(home: &Path) -> PathBuf {
    let mut node = nodes(home, 1).remove(0);
    let run = |sql: &str| drop(node.client.sql_json(sql, None).unwrap());
    run("CREATE TABLE readings (id BIGINT NOT NULL, name VARCHAR, x DOUBLE, PRIMARY KEY (id))");
    run("INSERT INTO readings SELECT value, 'name ' || (value % 7), value / 4.0 FROM generate_series(1, 9000)");
    run("FLUSH");
    run("INSERT INTO readings VALUES (1, 'again', 1.0), (9001, NULL, 2.0)");
    let dir = home.join("n0");
    let text = dir.to_str().unwrap();
    ends(&doctor(&[text]), 2, &["a node uses the data directory", "stop it first"]);
    let replica = named(&dir, "MANIFEST");
    ends(&doctor(&[replica.parent().unwrap().to_str().unwrap()]), 2, &["a node uses the data directory"]);
    node.kill();
    dir
}

#[test]
fn directories_of_killed_processes_are_examined() {
    let home = tempfile::tempdir().unwrap();
    let dir = killed(home.path());
    let text = dir.to_str().unwrap();
    let before = files(&dir);

    for arguments in [&[text][..], &["--deep", text]] {
        ends(&doctor(arguments), 0, &["1 table", "readings", "9000", "Sound."]);
    }
    let report = json(&[text]);
    assert_eq!(report["replicas"][0]["table"], "readings");
    assert_eq!(report["replicas"][0]["segments"][0]["rows"], 9000);
    assert_eq!((&report["replicas"][0]["log_records"], &report["replicas"][0]["log_rows"]), (&1.into(), &2.into()));
    let replica = named(&dir, "MANIFEST").parent().unwrap().to_owned();
    ends(&doctor(&[replica.to_str().unwrap()]), 0, &["readings", "Sound."]);

    let segment = named(&dir, ".seg");
    let shown = doctor(&["--dump", segment.to_str().unwrap()]);
    ends(
        &shown,
        0,
        &["9000 rows, 2 pages", "name (#", "dictionary of 7 values", "bloom, blocks", "every checksum holds"],
    );
    let dump = json(&["--dump", segment.to_str().unwrap()]);
    assert_eq!((&dump["columns"][1]["name"], &dump["columns"][1]["pages"][0]["nulls"]), (&"name".into(), &0.into()));
    assert_eq!(files(&dir), before, "nothing has been changed");

    for arguments in [&[][..], &["--deep"], &[text, "--dump", "x"], &[text, "--format", "csv"]] {
        ends(&doctor(arguments), 2, &["--help"]);
    }
    ends(&doctor(&["/no/such/directory"]), 2, &["/no/such/directory"]);
    ends(&doctor(&[home.path().to_str().unwrap()]), 2, &["neither the data directory of a node nor that of a replica"]);
    ends(&doctor(&["--dump", dir.join("NODE").to_str().unwrap()]), 2, &["not the name of a segment"]);

    damage(home.path(), &dir, dump["columns"][2]["pages"][1]["offset"].as_u64().unwrap());
}

/// Damages one file after the other, each in a copy of its own.
fn damage(home: &Path, dir: &Path, page: u64) {
    let flip = |bytes: &mut Vec<u8>, at: usize| bytes[at] ^= 0x10;
    type Change<'a> = &'a dyn Fn(&mut Vec<u8>);
    let cut = |bytes: &mut Vec<u8>| bytes.truncate(bytes.len() - 3);
    let alone = "there is no other replica";
    let page_place = format!(".seg at byte {page}: page 1 of column 2: the checksum is wrong");
    let cases: [(&str, Change<'_>, i32, &[&str]); 10] = [
        (".seg", &|bytes| flip(bytes, page as usize + 2), 1, &["DAMAGE", &page_place, alone]),
        (".seg", &cut, 1, &["DAMAGE", "the file has not the length that it had", alone]),
        ("MANIFEST", &|bytes| flip(bytes, 30), 1, &["MANIFEST at byte 16: checksum mismatch", alone]),
        ("META", &|bytes| flip(bytes, 20), 1, &["META at byte 16: checksum mismatch"]),
        ("wal-", &|bytes| flip(bytes, 18), 1, &["at byte 0: the header is damaged and records follow", alone]),
        ("wal-", &|bytes| flip(bytes, 56), 1, &["at byte 49", "its checksum is wrong", "begins a new log"]),
        ("wal-", &cut, 0, &["note", "a torn tail", "nothing is lost", "Sound. 1 note"]),
        ("NODE", &|bytes| flip(bytes, 2), 1, &["NODE at byte 0: checksum mismatch", "nobody knows which node this is"]),
        ("CLOCK", &|bytes| flip(bytes, 2), 1, &["CLOCK at byte 0", "might give a version twice"]),
        ("catalog/log", &|bytes| flip(bytes, 20), 1, &["catalog/log at byte 0: the log of the catalog does not start"]),
    ];
    for (number, (file, change, code, words)) in cases.into_iter().enumerate() {
        let copied = home.join(format!("copy{number}"));
        copy(dir, &copied);
        let path = named(&copied, file);
        let mut bytes = fs::read(&path).unwrap();
        change(&mut bytes);
        fs::write(&path, bytes).unwrap();
        ends(&doctor(&[copied.to_str().unwrap()]), code, words);
        let report = json(&[copied.to_str().unwrap()]);
        let of_replicas = report["replicas"].as_array().unwrap().iter().map(|replica| &replica["findings"]);
        let all = of_replicas.chain([&report["findings"]]).flat_map(|found| found.as_array().unwrap());
        let damaged = all.filter(|finding| finding["severity"] == "damage").count();
        assert_eq!(damaged > 0, code == 1, "{file}: {report}");
    }
    let copied = home.join("copy0");
    let segment = named(&copied, ".seg");
    ends(&doctor(&["--dump", segment.to_str().unwrap()]), 1, &["WRONG", "DAMAGED: 1 problem", &page_place]);
}
