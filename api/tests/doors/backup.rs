//! Backups of three processes, to a directory and to a real server of objects, and the way back into clusters of other sizes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use shoal::client::ClientError;
use shoal_kernel::ReadLevel;

use crate::cluster::{nodes, one_more};
use crate::support::{Process, until};

/// Rows of an answer, each by column. What was just written through another node is seen.
fn answer(node: &Process, sql: &str) -> Result<Vec<BTreeMap<String, Value>>, ClientError> {
    let level = sql.starts_with("SELECT").then_some(ReadLevel::Quorum);
    let answer = node.client.clone().reading_at(level).sql_json(sql, None)?;
    let result = &answer["results"][0];
    let columns: Vec<String> = result["columns"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| column["name"].as_str().unwrap().to_owned())
        .collect();
    let rows = result["rows"].as_array().unwrap().iter();
    Ok(rows.map(|row| columns.iter().cloned().zip(row.as_array().unwrap().iter().cloned()).collect()).collect())
}

fn sum(rows: &[BTreeMap<String, Value>], column: &str) -> u64 {
    rows.iter().map(|row| row[column].as_u64().unwrap()).sum()
}

fn run(node: &Process, sql: &str) {
    node.client.sql_json(sql, None).unwrap_or_else(|error| panic!("{sql}: {error}"));
}

#[track_caller]
fn refused(node: &Process, sql: &str, code: &str, words: &str) {
    let error = node.client.sql_json(sql, None).unwrap_err();
    let text = format!("{error:?}");
    assert!(text.contains(code) && text.contains(words), "{sql}: {text}");
    assert!(!text.contains("hush"), "{text}");
}

/// What must be the same afterwards, of each table.
const QUESTIONS: [&str; 6] = [
    "SELECT city, sum(k) FROM valued GROUP BY city ORDER BY city",
    "SELECT count(*), sum(x), max(_ts) FROM narrow",
    "SELECT count(*), sum(k), sum(v), min(note), max(note), count(note) FROM pairs",
    "SELECT count(*), sum(n), count(DISTINCT _dedup), min(_ts), max(_ts) FROM events",
    "SELECT n, extra FROM events WHERE n < 5 ORDER BY n, extra",
    "SELECT count(*), sum(x) FROM windows",
];

fn answers(node: &Process) -> Vec<Vec<BTreeMap<String, Value>>> {
    QUESTIONS.iter().map(|sql| answer(node, sql).unwrap_or_else(|error| panic!("{sql}: {error}"))).collect()
}

/// Three tables that know what storage knows: deletions, replaced rows, columns that came, went and were widened, windows.
fn fill(node: &Process) {
    run(node, "CREATE TABLE pairs (k BIGINT PRIMARY KEY, v INT, note VARCHAR) PARTITION BY RANGE(k) SPLIT AT (400)");
    run(node, "CREATE TABLE events (n BIGINT, gone VARCHAR)");
    run(node, "CREATE TABLE windows (x BIGINT) WITH (partition_size_hint = '1d', ttl = '10d')");
    let rows: Vec<String> = (0..1_000).map(|k| format!("({k}, {k}, 'note {k}')")).collect();
    run(node, &format!("INSERT INTO pairs (k, v, note) VALUES {}", rows.join(", ")));
    run(node, "FLUSH");
    run(node, "UPDATE pairs SET v = v + 1 WHERE k < 100");
    run(node, "DELETE FROM pairs WHERE k >= 300 AND k < 500");
    run(node, "ALTER TABLE pairs ALTER COLUMN v SET DATA TYPE BIGINT");
    run(node, "INSERT INTO pairs (k, v, note) VALUES (7000000000, 7000000000, NULL)");
    // Two events that only a column tells apart which nobody can name any more.
    run(
        node,
        "INSERT INTO events (_ts, _dedup, n, gone) VALUES \
         (TIMESTAMP '2024-05-05 00:00:00', 'same', 1, 'a'), (TIMESTAMP '2024-05-05 00:00:00', 'same', 1, 'b')",
    );
    let rows: Vec<String> = (2..500).map(|n| format!("({n}, 'x')")).collect();
    run(node, &format!("INSERT INTO events (n, gone) VALUES {}", rows.join(", ")));
    run(node, "ALTER TABLE events DROP COLUMN gone");
    run(node, "ALTER TABLE events ADD COLUMN extra VARCHAR");
    run(node, "INSERT INTO events (n, extra) VALUES (3, 'later')");
    run(node, "INSERT INTO windows (_ts, x) VALUES (now(), 1), (now() - INTERVAL '2 days', 2)");
    run(node, "CREATE TABLE valued (city VARCHAR, k BIGINT, PRIMARY KEY (city, k)) PARTITION BY VALUE(city)");
    run(node, "INSERT INTO valued (city, k) VALUES ('here', 1), ('there', 2), ('here', 3)");
    // One wide window, which becomes many.
    run(node, "CREATE TABLE narrow (x BIGINT) WITH (partition_size_hint = '10d')");
    let rows: Vec<String> =
        (0..200).map(|x| format!("(TIMESTAMP '2024-05-05 00:00:00' + INTERVAL '{x} minutes', {x})")).collect();
    run(node, &format!("INSERT INTO narrow (_ts, x) VALUES {}", rows.join(", ")));
    run(node, "ALTER TABLE narrow SET (partition_size_hint = '1m')");
}

/// Every file below a directory.
fn files(directory: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => found.push(path),
        }
    }
    found
}

/// Backs three nodes up, twice, and restores into them and into one that stands alone.
fn there_and_back(place: &str, with: &str) {
    let dir = tempfile::tempdir().unwrap();
    let cluster = nodes(&dir.path().join("three"), 3);
    fill(&cluster[0]);
    let before = answers(&cluster[1]);

    let first = answer(&cluster[1], &format!("BACKUP DATABASE TO '{place}' {with}")).unwrap();
    assert_eq!(sum(&first, "bytes"), sum(&first, "bytes_copied"));
    assert_eq!(sum(&first, "rows"), 801 + 501 + 2 + 200 + 3);
    run(&cluster[2], "INSERT INTO pairs (k, v, note) VALUES (10, -1, 'after the first')");
    let second = answer(&cluster[0], &format!("BACKUP DATABASE TO '{place}' {with}")).unwrap();
    let (all, copied) = (sum(&second, "bytes"), sum(&second, "bytes_copied"));
    assert!(copied > 0 && copied < all / 2, "{copied} of {all} bytes");
    let third = answer(&cluster[2], &format!("BACKUP TABLE events TO '{place}' {with}")).unwrap();
    assert_eq!((sum(&third, "bytes_copied"), third.len()), (0, 1), "{third:?}");

    // Beside the tables that are there.
    refused(&cluster[0], &format!("RESTORE DATABASE FROM '{place}' {with}"), "table_exists", "AS name");
    let again = answer(&cluster[0], &format!("RESTORE TABLE events FROM '{place}' AS copied {with}")).unwrap();
    assert_eq!((sum(&again, "rows"), &again[0]["table"]), (501, &json!("copied")));
    let differing = "SELECT count(*) FROM (SELECT * FROM events EXCEPT SELECT * FROM copied) AS d";
    assert!(answer(&cluster[1], differing).unwrap()[0].values().eq([&json!(0)]));
    assert!(answer(&cluster[1], "SELECT count(*) FROM copied").unwrap()[0].values().eq([&json!(501)]));

    // As it was before the last write, in a cluster of another size.
    let alone = nodes(&dir.path().join("one"), 1);
    let id = first[0]["backup"].as_str().unwrap();
    let with_id = match with.strip_suffix(')') {
        Some(options) => format!("{options}, backup = '{id}')"),
        None => format!("WITH (backup = '{id}')"),
    };
    let restored = answer(&alone[0], &format!("RESTORE DATABASE FROM '{place}' {with_id}")).unwrap();
    assert_eq!(sum(&restored, "rows"), 801 + 501 + 2 + 200 + 3);
    assert_eq!(answers(&alone[0]), before);
    assert!(answer(&alone[0], "SHOW PARTITIONS narrow").unwrap().len() >= 200);
    // A node that is away is nobody's loss.
    let mut cluster = cluster;
    cluster[2].kill();
    let fourth = answer(&cluster[0], &format!("BACKUP DATABASE TO '{place}' {with}")).unwrap();
    assert_eq!(sum(&fourth, "rows"), 801 + 501 + 2 + 200 + 3 + 501);
    answer(&cluster[0], &format!("RESTORE TABLE pairs FROM '{place}' AS pairs2 {with}")).unwrap();
    assert_eq!(answer(&cluster[1], "SELECT count(*) AS n FROM pairs2").unwrap()[0]["n"], json!(801));
    run(&alone[0], "INSERT INTO pairs (k, v, note) VALUES (10, 11, 'goes on')");
    let tables = answer(&alone[0], "SHOW TABLES").unwrap();
    assert_eq!(tables.len(), 5, "{tables:?}");
    run(&alone[0], "DROP TABLE pairs");
    answer(&alone[0], &format!("RESTORE TABLE pairs FROM '{place}' {with}")).unwrap();
    let newest = answer(&alone[0], "SELECT note FROM pairs WHERE k = 10").unwrap();
    assert_eq!(newest[0]["note"], json!("after the first"));
    refused(&alone[0], &format!("RESTORE TABLE other FROM '{place}' {with}"), "not_found", "other");
    assert!(files(&dir.path().join("one/n0")).iter().all(|path| !path.to_string_lossy().contains("/restore/")));
}

#[test]
fn a_directory_takes_backups_and_gives_them_back() {
    let place = tempfile::tempdir().unwrap();
    there_and_back(&format!("file://{}/backups", place.path().display()), "");

    // Damage is found, whatever it is, and nothing of the table is made.
    let root = place.path().join("backups");
    let node = &nodes(&place.path().join("other"), 1)[0];
    let restore = format!("RESTORE TABLE pairs FROM 'file://{}'", root.display());
    for folder in ["segments", "outlines", "backups"] {
        let flip = || {
            for path in files(&root.join(folder)) {
                let mut bytes = std::fs::read(&path).unwrap();
                let middle = bytes.len() / 2;
                bytes[middle] ^= 1;
                std::fs::write(path, bytes).unwrap();
            }
        };
        flip();
        refused(node, &restore, "corruption", "RESTORE");
        assert!(answer(node, "SHOW TABLES").unwrap().is_empty(), "{folder}");
        flip();
    }
    for path in files(&root.join("segments")) {
        std::fs::rename(&path, path.with_extension("away")).unwrap();
    }
    refused(node, &restore, "not_found", "it is not there");
    for path in files(&root.join("segments")) {
        std::fs::rename(&path, path.with_extension("seg")).unwrap();
    }
    run(node, &restore);
    refused(node, "BACKUP TABLE pairs TO 'file:///proc/shoal'", "io_error", "/proc/shoal");
    refused(node, "BACKUP TABLE pairs TO 'ftp://x'", "forbidden", "backup_urls");
    refused(node, "BACKUP TABLE nothing TO 'file:///tmp'", "unknown_table", "nothing");
}

#[test]
fn a_restore_that_is_stopped_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Vec::new();
    one_more(&mut cluster, dir.path(), &["--set", "backup_bytes_per_second=2000"]);
    let node = &cluster[0];
    fill(node);
    let place = dir.path().join("backups").display().to_string();
    let allowed = format!("BACKUP DATABASE TO 'file://{place}'");
    let stored = answer(node, &allowed).unwrap();
    assert!(sum(&stored, "bytes") > 8_000, "{stored:?}");
    let id = shoal_kernel::QueryId::new(shoal_kernel::NodeId(0), 77).to_string();
    let hidden = || {
        let tables = answer(node, "SHOW TABLES").unwrap();
        tables.iter().filter(|table| table.values().any(|name| name.to_string().contains("restore under way"))).count()
    };
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let sql = format!(
                "RESTORE TABLE pairs FROM 'file://{place}' AS again WITH (backup = '{}')",
                stored[0]["backup"].as_str().unwrap()
            );
            let error = node.client.sql_json(&sql, Some(&id)).unwrap_err();
            assert!(format!("{error:?}").contains("cancelled"), "{error:?}");
        });
        until("it is under way", || hidden() == 1);
        let shown = node.client.progress(&id).unwrap();
        let shown = shown.to_string();
        assert!(shown.contains("RESTORE TABLE pairs") && !shown.contains("WITH (backup ="), "{shown}");
        node.client.cancel(&id).unwrap();
    });
    until("what there was of it is gone", || {
        hidden() == 0 && files(&dir.path().join("n0")).iter().all(|path| !path.to_string_lossy().contains("/restore/"))
    });
}

/// A server of objects in this process, with files below a directory.
struct Server {
    address: SocketAddr,
    _runtime: tokio::runtime::Runtime,
}

const KEY: &str = "the key";
const SECRET: &str = "hush";

impl Server {
    fn start(root: &Path) -> Self {
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let mut service = s3s::service::S3ServiceBuilder::new(s3s_fs::FileSystem::new(root).unwrap());
        service.set_auth(s3s::auth::SimpleAuth::from_single(KEY, SECRET));
        let service = service.build().into_shared();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move {
            loop {
                let (socket, _) = listener.accept().await.unwrap();
                let service = service.clone();
                tokio::spawn(async move {
                    let socket = hyper_util::rt::TokioIo::new(socket);
                    let _ = hyper::server::conn::http1::Builder::new().serve_connection(socket, service).await;
                });
            }
        });
        Self { address, _runtime: runtime }
    }

    fn with(&self, key: &str, secret: &str) -> String {
        format!(
            "WITH (endpoint = 'http://{}', region = 'here', access_key_id = '{key}', secret_access_key = '{secret}', \
             allow_http = 'true')",
            self.address
        )
    }
}

#[test]
fn a_server_of_objects_takes_backups_and_gives_them_back() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("bucket")).unwrap();
    let server = Server::start(dir.path());
    let with = server.with(KEY, SECRET);
    there_and_back("s3://bucket/some/where", &with);

    let node = &nodes(&dir.path().join("other"), 1)[0];
    let restore = |with: &str| format!("RESTORE TABLE pairs FROM 's3://bucket/some/where' {with}");
    refused(node, &restore(&server.with(KEY, "hush, but another")), "forbidden", "access is denied");
    refused(node, &format!("RESTORE DATABASE FROM 's3://nothing/here' {with}"), "not_found", "");
    // Files that are sent in parts.
    run(node, "CREATE TABLE big (k BIGINT PRIMARY KEY, a DOUBLE, b DOUBLE)");
    run(node, "INSERT INTO big (k, a, b) SELECT value, random() AS a, random() AS b FROM generate_series(1, 700000)");
    let stored = answer(node, &format!("BACKUP TABLE big TO 's3://bucket/big' {with}")).unwrap();
    assert!(sum(&stored, "bytes") > 10 << 20 && sum(&stored, "files") == 1, "{stored:?}");
    run(node, &format!("RESTORE TABLE big FROM 's3://bucket/big' AS again {with}"));
    let same =
        answer(node, "SELECT count(*) FROM big JOIN again ON big.k = again.k AND big.a = again.a AND big.b = again.b");
    assert!(same.unwrap()[0].values().eq([&json!(700_000)]));
    let wrong = server.with(KEY, "hush, but another");
    refused(node, &format!("BACKUP TABLE big TO 's3://bucket/big' {wrong}"), "forbidden", "access is denied");
}
