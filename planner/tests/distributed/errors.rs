//! What is refused, with which words, and where in the text.

use expect_test::{Expect, expect};
use shoal_planner::PlanOptions;

use crate::world::World;

async fn refusal(world: &World, sql: &str, options: &PlanOptions) -> String {
    let error = world.planner.plan(sql, &world.catalog, options).await.map(|_| ()).unwrap_err();
    let mut text = format!("{error}");
    for span in error.spans() {
        text += &format!(" @{}:{}-{}:{}", span.line, span.column, span.end_line, span.end_column);
    }
    match error.help() {
        Some(help) => format!("{text} [{help}]"),
        None => text,
    }
}

async fn check(world: &World, statements: &[&str], expected: Expect) {
    let mut lines = String::new();
    for sql in statements {
        lines += &format!("{sql}\n    {}\n", refusal(world, sql, &PlanOptions::default()).await);
    }
    expected.assert_eq(&lines);
}

#[tokio::test]
async fn queries() {
    let world = World::new().await;
    let statements = [
        "",
        "SELEC 1",
        "SELECT FROM WHERE",
        "SELECT 1; SELECT 2",
        "SELECT (1 +",
        "SELECT\n  dely FROM flights",
        "SELECT f.dely FROM flights f",
        "SELECT * FROM flihgts",
        "SELECT *\nFROM airports JOIN\n  fligths ON true",
        "SELECT * FROM other.public.flights",
        "SELECT cuont(delay) FROM flights",
        "SELECT frobnicate(delay) FROM flights",
        "SELECT origin, count(*) FROM flights",
        "SELECT iata FROM airports a JOIN airports b ON a.iata = b.iata",
        "SELECT id + origin FROM flights WHERE delay",
        "SELECT abs(origin, delay) FROM flights",
        "SELECT 1 UNION SELECT 1, 2",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * INTO copy FROM flights",
        "SELECT $1",
        "SELECT * FROM flights TABLESAMPLE (10)",
        "SELECT * FROM flights FOR UPDATE",
        "EXPLAIN FORMAT JSON SELECT 1",
        "SELECT lag(delay) IGNORE NULLS OVER (ORDER BY id) FROM flights",
        "SELECT array_agg(delay) FILTER (WHERE delay > 9) OVER (ORDER BY id) FROM flights",
    ];
    check(&world, &statements, expect![[r#"

            syntax_error: the text has no statement
        SELEC 1
            syntax_error: expected: an SQL statement, found: SELEC @1:1-1:6
        SELECT FROM WHERE
            unknown_table: there is no table 'where' @1:13-1:18 [SHOW TABLES lists them]
        SELECT 1; SELECT 2
            syntax_error: one statement was expected, here starts a second one @1:11-1:17 [send them one by one]
        SELECT (1 +
            syntax_error: expected: an expression, found: EOF @1:12-1:12
        SELECT
          dely FROM flights
            unknown_column: there is no column 'dely' @2:3-2:7 [did you mean 'delay'?]
        SELECT f.dely FROM flights f
            unknown_column: there is no column 'dely' in 'f' @1:8-1:14 [did you mean 'delay'?]
        SELECT * FROM flihgts
            unknown_table: there is no table 'flihgts' @1:15-1:22 [did you mean 'flights'?]
        SELECT *
        FROM airports JOIN
          fligths ON true
            unknown_table: there is no table 'fligths' @3:3-3:10 [did you mean 'flights'?]
        SELECT * FROM other.public.flights
            unknown_table: there is no table 'flights' @1:15-1:35 [did you mean 'flights'?]
        SELECT cuont(delay) FROM flights
            unknown_function: there is no function 'cuont' @1:8-1:13 [did you mean 'count'?]
        SELECT frobnicate(delay) FROM flights
            unknown_function: there is no function 'frobnicate' @1:8-1:18
        SELECT origin, count(*) FROM flights
            invalid_statement: Column in SELECT must be in GROUP BY or an aggregate function: While expanding wildcard, column "flights.origin" must appear in the GROUP BY clause or must be part of an aggregate function, currently only "count(Int64(1))" appears in the SELECT clause satisfies this requirement @1:8-1:14 [Either add 'flights.origin' to GROUP BY clause, or use an aggregate function like ANY_VALUE(flights.origin)]
        SELECT iata FROM airports a JOIN airports b ON a.iata = b.iata
            unknown_column: column 'iata' is ambiguous @1:8-1:12 [put the table's name or alias before it]
        SELECT id + origin FROM flights WHERE delay
            invalid_statement: Cannot create filter with non-boolean predicate 'flights.delay' returning Int32
        SELECT abs(origin, delay) FROM flights
            invalid_statement: Function 'abs' expects 1 arguments but received 2. No function matches the given name and argument types 'abs(Utf8, Int32)'. You might need to add explicit type casts.
        	Candidate functions:
        	abs(Numeric(1))
        SELECT 1 UNION SELECT 1, 2
            invalid_statement: UNION queries have different number of columns @1:1-1:27 [this side has 1 fields; this side has 2 fields]
        SELECT * FROM '/etc/passwd'
            unknown_table: there is no table '/etc/passwd' [SHOW TABLES lists them]
        SELECT * INTO copy FROM flights
            unsupported: a query may only read: it cannot make or change tables
        SELECT $1
            unsupported: the parameter $1 has no value
        SELECT * FROM flights TABLESAMPLE (10)
            unsupported: TABLESAMPLE is not built yet @1:15-1:22 [use WHERE random() < 0.1]
        SELECT * FROM flights FOR UPDATE
            unsupported: FOR UPDATE and FOR SHARE do not exist: reads lock nothing @1:1-1:22
        EXPLAIN FORMAT JSON SELECT 1
            unsupported: EXPLAIN has no options and no formats [use EXPLAIN or EXPLAIN ANALYZE]
        SELECT lag(delay) IGNORE NULLS OVER (ORDER BY id) FROM flights
            unsupported: IGNORE NULLS of this window function is not built yet [rank the rows that are not null in a subquery, and join]
        SELECT array_agg(delay) FILTER (WHERE delay > 9) OVER (ORDER BY id) FROM flights
            unsupported: FILTER of this window function is not built yet [leave the rows out in a subquery]
    "#]]).await;
}

#[tokio::test]
async fn tables() {
    let world = World::new().await;
    let statements = [
        "CREATE TABLE t ()",
        "CREATE TABLE t (a INT, A VARCHAR)",
        "CREATE TABLE t (a INT, PRIMARY KEY (b))",
        "CREATE TABLE t (alpha INT, PRIMARY KEY (alhpa))",
        "CREATE TABLE t (a GEOMETRY)",
        "CREATE TABLE t (a INT[], PRIMARY KEY (a))",
        "CREATE TABLE t (a DECIMAL(50, 2))",
        "CREATE TABLE t (a INT PRIMARY KEY, b INT) PARTITION BY RANGE(b)",
        "CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY RANGE(a) SPLIT AT (5, 3)",
        "CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY RANGE(a) SPLIT AT ('x')",
        "CREATE TABLE t (a VARCHAR PRIMARY KEY) PARTITION BY RANGE(a) SPLIT AT (7)",
        "CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY HASH(a) PARTITIONS 0",
        "CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY HASH(a) PARTITIONS 5000",
        "CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY LIST(a)",
        "CREATE TABLE t (a INT PRIMARY KEY) WITH (replication_facto = 2)",
        "CREATE TABLE t (a INT PRIMARY KEY) WITH (replication_factor = 0)",
        "CREATE TABLE t (a INT PRIMARY KEY) WITH (write_level = 'most')",
        "CREATE TABLE t (a INT PRIMARY KEY) WITH (fsync = 'sometimes')",
        "CREATE TABLE t (a INT PRIMARY KEY) WITH (fsync = 'allways')",
        "CREATE TABLE t (a INT PRIMARY KEY) WITH (fsync = 'interval', fsync_interval_ms = 0)",
        "CREATE TABLE t (a INT PRIMARY KEY) WITH (fsync_interval_ms = 200, fsync = 'never')",
        "CREATE TABLE t (a INT PRIMARY KEY) WITH (ttl = '30d')",
        "CREATE TABLE t (a INT PRIMARY KEY, at TIMESTAMP) WITH (ttl = '30d', ttl_column = 'at')",
        "CREATE TABLE t (a TIMESTAMP, b TIMESTAMP, c DATE, PRIMARY KEY (a, b, c)) WITH (ttl = '1w')",
        "CREATE TABLE t (a TIMESTAMP, b TIMESTAMP, c DATE, PRIMARY KEY (a, b, c)) WITH (ttl = '1w', ttl_column = c)",
        "CREATE TABLE t (at TIMESTAMP, line VARCHAR) WITH (ttl = '1w', ttl_column = at)",
        "CREATE TABLE t (line VARCHAR) WITH (ttl = '30')",
        "CREATE TABLE t (line VARCHAR) WITH (ttl = '10ms')",
        "CREATE TABLE t (line VARCHAR) WITH (ttl_column = _ts)",
        "CREATE TABLE t (a INT PRIMARY KEY) nonsense",
        "CREATE TABLE t (a INT DEFAULT 5)",
        "CREATE TABLE t (_ts INT)",
        "CREATE TABLE t AS SELECT 1",
        "CREATE TABLE t (_version INT)",
    ];
    check(&world, &statements, expect![[r#"
        CREATE TABLE t ()
            invalid_statement: a table needs at least one column @1:14-1:15
        CREATE TABLE t (a INT, A VARCHAR)
            invalid_statement: there are two columns 'a' @1:24-1:25
        CREATE TABLE t (a INT, PRIMARY KEY (b))
            unknown_column: there is no column 'b' in this table @1:37-1:38 [did you mean 'a'?]
        CREATE TABLE t (alpha INT, PRIMARY KEY (alhpa))
            unknown_column: there is no column 'alhpa' in this table @1:41-1:46 [did you mean 'alpha'?]
        CREATE TABLE t (a GEOMETRY)
            unsupported: columns of type GEOMETRY cannot be stored @1:17-1:18 [use BOOLEAN, SMALLINT, INT, BIGINT, REAL, DOUBLE, DECIMAL(p, s), VARCHAR, TIMESTAMP, TIMESTAMP WITH TIME ZONE, DATE, TIME, BYTEA, an ARRAY or a STRUCT]
        CREATE TABLE t (a INT[], PRIMARY KEY (a))
            unsupported: a column of type List(Int32) cannot be part of a key @1:39-1:40
        CREATE TABLE t (a DECIMAL(50, 2))
            invalid_statement: DECIMAL(50, 2) is out of range @1:17-1:18 [1 to 38 digits, of which 0 to all after the point]
        CREATE TABLE t (a INT PRIMARY KEY, b INT) PARTITION BY RANGE(b)
            invalid_statement: the partition key must be part of the key, and 'b' is not @1:62-1:63 [the key is (a)]
        CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY RANGE(a) SPLIT AT (5, 3)
            invalid_statement: split points must ascend, and 3 does not @1:71-1:72
        CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY RANGE(a) SPLIT AT ('x')
            invalid_statement: 'x' is not a value of column 'a', which has the type Int32 @1:68-1:71
        CREATE TABLE t (a VARCHAR PRIMARY KEY) PARTITION BY RANGE(a) SPLIT AT (7)
            invalid_statement: 7 is not a constant of the type of column 'a': put it in quotes @1:72-1:73
        CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY HASH(a) PARTITIONS 0
            limit_exceeded: a table has from 1 to 1024 partitions @1:68-1:69
        CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY HASH(a) PARTITIONS 5000
            limit_exceeded: a table has from 1 to 1024 partitions @1:68-1:72
        CREATE TABLE t (a INT PRIMARY KEY) PARTITION BY LIST(a)
            syntax_error: expected: RANGE, HASH or VALUE, found: LIST @1:49-1:53
        CREATE TABLE t (a INT PRIMARY KEY) WITH (replication_facto = 2)
            invalid_statement: 'replication_facto' is not a setting of a table @1:42-1:59 [did you mean 'replication_factor'?]
        CREATE TABLE t (a INT PRIMARY KEY) WITH (replication_factor = 0)
            invalid_statement: replication_factor is a number from 1 to 16, not 0 @1:63-1:64
        CREATE TABLE t (a INT PRIMARY KEY) WITH (write_level = 'most')
            invalid_statement: 'most' is not a level; use one of one, quorum, all @1:56-1:62
        CREATE TABLE t (a INT PRIMARY KEY) WITH (fsync = 'sometimes')
            invalid_statement: fsync is one of always, interval, never, not 'sometimes' @1:50-1:61 [always: synced before it is acknowledged; interval: so often; never: when it suits]
        CREATE TABLE t (a INT PRIMARY KEY) WITH (fsync = 'allways')
            invalid_statement: fsync is one of always, interval, never, not 'allways' @1:50-1:59 [did you mean 'always'?]
        CREATE TABLE t (a INT PRIMARY KEY) WITH (fsync = 'interval', fsync_interval_ms = 0)
            invalid_statement: fsync_interval_ms is a number from 1 to 60000, not 0 @1:82-1:83
        CREATE TABLE t (a INT PRIMARY KEY) WITH (fsync_interval_ms = 200, fsync = 'never')
            invalid_statement: fsync_interval_ms says how often a table is synced whose fsync is 'interval' @1:42-1:59 [add fsync = 'interval', or leave it out]
        CREATE TABLE t (a INT PRIMARY KEY) WITH (ttl = '30d')
            invalid_statement: ttl goes by a TIMESTAMP of the primary key, and this key has none @1:48-1:53 [add one to the key, or make a table of events: without a PRIMARY KEY, it has '_ts']
        CREATE TABLE t (a INT PRIMARY KEY, at TIMESTAMP) WITH (ttl = '30d', ttl_column = 'at')
            invalid_statement: 'at' is no TIMESTAMP of the table's key @1:82-1:86 [the table's key has none]
        CREATE TABLE t (a TIMESTAMP, b TIMESTAMP, c DATE, PRIMARY KEY (a, b, c)) WITH (ttl = '1w')
            invalid_statement: the key has several TIMESTAMPs: a, b @1:86-1:90 [say which one with ttl_column]
        CREATE TABLE t (a TIMESTAMP, b TIMESTAMP, c DATE, PRIMARY KEY (a, b, c)) WITH (ttl = '1w', ttl_column = c)
            invalid_statement: 'c' is no TIMESTAMP of the table's key @1:105-1:106 [it has these: a, b]
        CREATE TABLE t (at TIMESTAMP, line VARCHAR) WITH (ttl = '1w', ttl_column = at)
            invalid_statement: 'at' is no TIMESTAMP of the table's key @1:76-1:78 [it has these: _ts]
        CREATE TABLE t (line VARCHAR) WITH (ttl = '30')
            invalid_statement: '30' is no duration: a whole number and one of w, d, h, m, s, ms, such as '30d' @1:43-1:47 [ttl = 'none' keeps rows for ever]
        CREATE TABLE t (line VARCHAR) WITH (ttl = '10ms')
            invalid_statement: rows are kept for 1s to 365000d, not for 10ms @1:43-1:49 [ttl = 'none' keeps rows for ever]
        CREATE TABLE t (line VARCHAR) WITH (ttl_column = _ts)
            invalid_statement: ttl_column says by which time rows are dropped, and they are kept for ever @1:50-1:53 [add ttl = '30d', or leave it out]
        CREATE TABLE t (a INT PRIMARY KEY) nonsense
            syntax_error: expected: end of statement, found: nonsense @1:36-1:44
        CREATE TABLE t (a INT DEFAULT 5)
            unsupported: 'DEFAULT 5' of column 'a' is not supported @1:17-1:32
        CREATE TABLE t (_ts INT)
            invalid_statement: column '_ts' of an event table has the type Timestamp(µs), not Int32 @1:14-1:15 [leave it out, it is added by itself; or add a PRIMARY KEY]
        CREATE TABLE t AS SELECT 1
            unsupported: a table cannot be created from a query yet @1:16-1:18 [create it with its columns, then INSERT INTO it from the query]
        CREATE TABLE t (_version INT)
            invalid_statement: the column name '_version' is reserved @1:17-1:25
    "#]]).await;
}

#[tokio::test]
async fn what_is_not_done() {
    let world = World::new().await;
    let statements = [
        "COPY flights TO 'out.csv'",
        "CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'",
        "SET datafusion.execution.batch_size = 1",
        "TRUNCATE flights",
        "MERGE INTO flights USING airports ON true WHEN MATCHED THEN DELETE",
        "CREATE VIEW v AS SELECT 1",
        "DROP VIEW v",
        "EXPLAIN INSERT INTO pairs VALUES (1, 'a', 1)",
        "INSERT INTO fligts VALUES (1)",
        "INSERT INTO airports (iata, ctiy) VALUES ('X', 'Y')",
        "INSERT INTO airports (city) VALUES ('Y')",
        "INSERT INTO airports VALUES ('X')",
        "INSERT INTO airports VALUES ('A', 'a', 'x', 1.0), (NULL, 'b', 'y', 2.0)",
        "INSERT INTO pairs VALUES (1, 'a', 1), ('many', 'b', 2)",
        "INSERT INTO pairs VALUES ((SELECT max(id) FROM flights), 'a', 1)",
        "INSERT INTO pairs VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 'x'), (4, 'd', 4)",
        "INSERT INTO pairs VALUES (1, 'a', 1) ON CONFLICT DO NOTHING",
        "INSERT INTO pairs VALUES (1, 'a', 1) RETURNING a",
        "DESCRIBE fligths",
        "SHOW PARTITIONS flight",
    ];
    check(&world, &statements, expect![[r#"
        COPY flights TO 'out.csv'
            forbidden: COPY would open files of the server @1:1-1:5 [use ingest, or the shell's import]
        CREATE EXTERNAL TABLE x STORED AS CSV LOCATION '/etc/passwd'
            forbidden: CREATE EXTERNAL TABLE would open files of the server @1:1-1:7 [create a table and import the file]
        SET datafusion.execution.batch_size = 1
            unsupported: there are no session settings @1:1-1:4 [give options with the request]
        TRUNCATE flights
            unsupported: TRUNCATE does not exist @1:1-1:9 [use DELETE, or drop the table and create it again]
        MERGE INTO flights USING airports ON true WHEN MATCHED THEN DELETE
            unsupported: MERGE does not exist @1:1-1:6 [use INSERT: a row with an existing key replaces the older one by itself]
        CREATE VIEW v AS SELECT 1
            unsupported: 'CREATE VIEW' is not a statement that Shoal carries out @1:13-1:26
        DROP VIEW v
            unsupported: 'DROP VIEW' is not a statement that Shoal carries out
        EXPLAIN INSERT INTO pairs VALUES (1, 'a', 1)
            unsupported: only queries, DELETE and UPDATE can be explained
        INSERT INTO fligts VALUES (1)
            unknown_table: there is no table 'fligts' @1:13-1:19 [did you mean 'flights'?]
        INSERT INTO airports (iata, ctiy) VALUES ('X', 'Y')
            unknown_column: there is no column 'ctiy' in 'airports' @1:29-1:33 [did you mean 'city'?]
        INSERT INTO airports (city) VALUES ('Y')
            invalid_rows: column 'iata' is NOT NULL and is not given a value @1:13-1:21
        INSERT INTO airports VALUES ('X')
            invalid_rows: row 1: Inconsistent data length across values list: got 1 values in row 0 but expected 4 @1:30-1:33
        INSERT INTO airports VALUES ('A', 'a', 'x', 1.0), (NULL, 'b', 'y', 2.0)
            invalid_rows: row 2: Column 'column1' is declared as non-nullable but contains null values @1:52-1:56
        INSERT INTO pairs VALUES (1, 'a', 1), ('many', 'b', 2)
            invalid_rows: row 2: Cannot cast string 'many' to value of Int32 type @1:40-1:46
        INSERT INTO pairs VALUES ((SELECT max(id) FROM flights), 'a', 1)
            unsupported: VALUES cannot read tables [use INSERT INTO … SELECT]
        INSERT INTO pairs VALUES (1, 'a', 1), (2, 'b', 2), (3, 'c', 'x'), (4, 'd', 4)
            invalid_rows: row 3: Cannot cast string 'x' to value of Decimal128(38, 10) type @1:53-1:54
        INSERT INTO pairs VALUES (1, 'a', 1) ON CONFLICT DO NOTHING
            unsupported: INSERT does not support ON CONFLICT: a row with an existing key replaces the older one by itself
        INSERT INTO pairs VALUES (1, 'a', 1) RETURNING a
            unsupported: INSERT does not support RETURNING
        DESCRIBE fligths
            unknown_table: there is no table 'fligths' @1:10-1:17 [did you mean 'flights'?]
        SHOW PARTITIONS flight
            unknown_table: there is no table 'flight' @1:17-1:23 [did you mean 'flights'?]
    "#]]).await;
}

#[tokio::test]
async fn changes() {
    let world = World::new().await;
    let statements = [
        "DELETE FROM fligths",
        "DELETE FROM flights WHERE dely > 3",
        "DELETE FROM flights WHERE delay",
        "DELETE FROM readings WHERE value > 3",
        "DELETE FROM flights USING airports WHERE origin = iata",
        "DELETE FROM flights JOIN airports ON origin = iata",
        "DELETE FROM flights, airports",
        "DELETE FROM flights LIMIT 5",
        "DELETE FROM flights ORDER BY id",
        "DELETE FROM flights RETURNING id",
        "DELETE flights WHERE id = 1",
        "DELETE FROM (SELECT 1)",
        "UPDATE fligths SET delay = 0",
        "UPDATE flights SET dely = 0",
        "UPDATE flights SET id = id + 1",
        "UPDATE pairs SET c = 1, B = 'x'",
        "UPDATE flights SET delay = 0, delay = 1",
        "UPDATE flights SET ts = NULL",
        "UPDATE flights SET delay = 'late'",
        "UPDATE flights SET delay = TIMESTAMP '2001-01-01 00:00:00'",
        "UPDATE flights SET delay = dely + 1",
        "UPDATE flights SET delay = frobnicate(delay)",
        "UPDATE flights SET (delay, distance) = (1, 2)",
        "UPDATE flights SET delay = 0 FROM airports WHERE origin = iata",
        "UPDATE flights SET delay = 0 RETURNING id",
        "UPDATE readings SET value = 0",
        "EXPLAIN ANALYZE DELETE FROM flights",
        "FLUSH flights",
        "FLUSH TABLE fligths",
        "OPTIMIZE flights",
        "OPTIMIZE TABLE",
        "OPTIMIZE TABLE flights FINAL",
    ];
    check(&world, &statements, expect![[r#"
        DELETE FROM fligths
            unknown_table: there is no table 'fligths' @1:13-1:20 [did you mean 'flights'?]
        DELETE FROM flights WHERE dely > 3
            unknown_column: there is no column 'dely' @1:27-1:31 [did you mean 'delay'?]
        DELETE FROM flights WHERE delay
            invalid_statement: Cannot create filter with non-boolean predicate 'flights.delay' returning Int32
        DELETE FROM readings WHERE value > 3
            unsupported: 'readings' is a table of events, and DELETE needs a table with a primary key @1:13-1:21 [events have no key to be changed or deleted by; they stay until the table is dropped]
        DELETE FROM flights USING airports WHERE origin = iata
            unsupported: DELETE does not support USING @1:1-1:55 [say which rows are meant with WHERE, which may hold subqueries]
        DELETE FROM flights JOIN airports ON origin = iata
            unsupported: DELETE does not support joins @1:26-1:51 [say which rows are meant with WHERE, which may hold subqueries]
        DELETE FROM flights, airports
            unsupported: DELETE does not support more than one table @1:1-1:30 [say which rows are meant with WHERE, which may hold subqueries]
        DELETE FROM flights LIMIT 5
            unsupported: DELETE does not support LIMIT @1:27-1:28 [say which rows are meant with WHERE, which may hold subqueries]
        DELETE FROM flights ORDER BY id
            unsupported: DELETE does not support ORDER BY @1:30-1:32 [say which rows are meant with WHERE, which may hold subqueries]
        DELETE FROM flights RETURNING id
            unsupported: DELETE does not support RETURNING @1:1-1:33 [say which rows are meant with WHERE, which may hold subqueries]
        DELETE flights WHERE id = 1
            unsupported: DELETE does not support deleting without FROM @1:1-1:28 [say which rows are meant with WHERE, which may hold subqueries]
        DELETE FROM (SELECT 1)
            unsupported: DELETE does not support anything but a table @1:14-1:22 [say which rows are meant with WHERE, which may hold subqueries]
        UPDATE fligths SET delay = 0
            unknown_table: there is no table 'fligths' @1:8-1:15 [did you mean 'flights'?]
        UPDATE flights SET dely = 0
            unknown_column: there is no column 'dely' in 'flights' @1:20-1:24 [did you mean 'delay'?]
        UPDATE flights SET id = id + 1
            invalid_statement: column 'id' is part of the key of 'flights', which cannot be changed @1:20-1:22 [insert the row under its new key, and delete the old one]
        UPDATE pairs SET c = 1, B = 'x'
            invalid_statement: column 'b' is part of the key of 'pairs', which cannot be changed @1:25-1:26 [insert the row under its new key, and delete the old one]
        UPDATE flights SET delay = 0, delay = 1
            invalid_statement: column 'delay' is set twice @1:31-1:36
        UPDATE flights SET ts = NULL
            invalid_rows: column 'ts' is NOT NULL @1:25-1:29
        UPDATE flights SET delay = 'late'
            evaluation_error: Cannot cast string 'late' to value of Int32 type @1:28-1:34
        UPDATE flights SET delay = TIMESTAMP '2001-01-01 00:00:00'
            evaluation_error: Can't cast value 978307200000000000 to type Int32 @1:38-1:59
        UPDATE flights SET delay = dely + 1
            unknown_column: there is no column 'dely' @1:28-1:32 [did you mean 'delay'?]
        UPDATE flights SET delay = frobnicate(delay)
            unknown_function: there is no function 'frobnicate' @1:28-1:38
        UPDATE flights SET (delay, distance) = (1, 2)
            unsupported: UPDATE does not support setting several columns at once @1:21-1:36 [say which rows are meant with WHERE, which may hold subqueries]
        UPDATE flights SET delay = 0 FROM airports WHERE origin = iata
            unsupported: UPDATE does not support FROM @1:35-1:43 [say which rows are meant with WHERE, which may hold subqueries]
        UPDATE flights SET delay = 0 RETURNING id
            unsupported: UPDATE does not support RETURNING @1:1-1:42 [say which rows are meant with WHERE, which may hold subqueries]
        UPDATE readings SET value = 0
            unsupported: 'readings' is a table of events, and UPDATE needs a table with a primary key @1:8-1:16 [events have no key to be changed or deleted by; they stay until the table is dropped]
        EXPLAIN ANALYZE DELETE FROM flights
            unsupported: EXPLAIN ANALYZE would have to change the rows [EXPLAIN shows how they are read]
        FLUSH flights
            syntax_error: expected: end of statement, found: flights @1:7-1:14
        FLUSH TABLE fligths
            unknown_table: there is no table 'fligths' @1:13-1:20 [did you mean 'flights'?]
        OPTIMIZE flights
            syntax_error: expected: TABLE, found: flights @1:10-1:17
        OPTIMIZE TABLE
            syntax_error: expected: identifier, found: EOF @1:15-1:15
        OPTIMIZE TABLE flights FINAL
            syntax_error: expected: end of statement, found: FINAL @1:24-1:29
    "#]]).await;
}

#[tokio::test]
async fn alterations() {
    let world = World::new().await;
    let statements = [
        "ALTER TABLE flihgts ADD COLUMN x INT",
        "ALTER TABLE flights ADD COLUMN delay INT",
        "ALTER TABLE flights ADD COLUMN x INT NOT NULL",
        "ALTER TABLE flights ADD COLUMN x INT DEFAULT 3",
        "ALTER TABLE flights ADD COLUMN x INT FIRST",
        "ALTER TABLE flights ADD COLUMN x UUID",
        "ALTER TABLE flights ADD COLUMN _version INT",
        "ALTER TABLE flights ADD COLUMN x INT, ADD COLUMN x INT",
        "ALTER TABLE flights DROP COLUMN dely",
        "ALTER TABLE flights DROP COLUMN id",
        "ALTER TABLE flights RENAME COLUMN delay TO origin",
        "ALTER TABLE flights RENAME TO fly",
        "ALTER TABLE readings DROP COLUMN _ts",
        "ALTER TABLE flights ALTER COLUMN delay SET DATA TYPE SMALLINT",
        "ALTER TABLE flights ALTER COLUMN origin TYPE INT",
        "ALTER TABLE flights ALTER COLUMN delay TYPE VARCHAR USING 'x'",
        "ALTER TABLE flights ALTER COLUMN delay SET NOT NULL",
        "ALTER TABLE flights ADD CONSTRAINT c UNIQUE (origin)",
        "ALTER TABLE flights SET (replication_factor = 2)",
        "ALTER TABLE flights SET (fsync = 'never')",
        "ALTER TABLE flights SET (write_level = 'one', fsync_interval_ms = 100)",
        "ALTER TABLE flights SET (wirte_level = 'one')",
        "ALTER TABLE flights SET (ttl = '7d')",
        "ALTER TABLE readings SET (ttl = 'for ever')",
        "ALTER TABLE flights",
    ];
    check(&world, &statements, expect![[r#"
        ALTER TABLE flihgts ADD COLUMN x INT
            unknown_table: there is no table 'flihgts' @1:13-1:20 [did you mean 'flights'?]
        ALTER TABLE flights ADD COLUMN delay INT
            invalid_statement: there is a column 'delay' already @1:32-1:37
        ALTER TABLE flights ADD COLUMN x INT NOT NULL
            invalid_statement: the new column 'x' is NULL in the rows that are there @1:32-1:33 [leave NOT NULL out]
        ALTER TABLE flights ADD COLUMN x INT DEFAULT 3
            unsupported: 'DEFAULT 3' of a new column is not supported @1:32-1:33
        ALTER TABLE flights ADD COLUMN x INT FIRST
            unsupported: a new column stands behind the others @1:32-1:33 [ALTER TABLE adds, drops and renames columns, gives them a wider type, sets write_level, read_level, ttl, schemaless, partition_size_hint, partition_bytes_max and partition_rows_max, and splits partitions]
        ALTER TABLE flights ADD COLUMN x UUID
            unsupported: columns of type UUID cannot be stored @1:32-1:33 [use BOOLEAN, SMALLINT, INT, BIGINT, REAL, DOUBLE, DECIMAL(p, s), VARCHAR, TIMESTAMP, TIMESTAMP WITH TIME ZONE, DATE, TIME, BYTEA, an ARRAY or a STRUCT]
        ALTER TABLE flights ADD COLUMN _version INT
            invalid_statement: the column name '_version' is reserved @1:32-1:40
        ALTER TABLE flights ADD COLUMN x INT, ADD COLUMN x INT
            invalid_statement: there is a column 'x' already @1:50-1:51
        ALTER TABLE flights DROP COLUMN dely
            unknown_column: there is no column 'dely' in 'flights' @1:33-1:37 [did you mean 'delay'?]
        ALTER TABLE flights DROP COLUMN id
            invalid_statement: column 'id' is part of the table's key and cannot be dropped @1:33-1:35
        ALTER TABLE flights RENAME COLUMN delay TO origin
            invalid_statement: there is a column 'origin' already @1:44-1:50
        ALTER TABLE flights RENAME TO fly
            unsupported: tables keep their names @1:31-1:34 [ALTER TABLE adds, drops and renames columns, gives them a wider type, sets write_level, read_level, ttl, schemaless, partition_size_hint, partition_bytes_max and partition_rows_max, and splits partitions]
        ALTER TABLE readings DROP COLUMN _ts
            invalid_statement: column '_ts' is part of the table's key and cannot be dropped @1:34-1:37
        ALTER TABLE flights ALTER COLUMN delay SET DATA TYPE SMALLINT
            invalid_statement: column 'delay' of type Int32 cannot become Int16, only BIGINT, DOUBLE, VARCHAR, a DECIMAL with room for every digit @1:34-1:39
        ALTER TABLE flights ALTER COLUMN origin TYPE INT
            invalid_statement: column 'origin' of type Utf8 cannot get another type @1:34-1:40
        ALTER TABLE flights ALTER COLUMN delay TYPE VARCHAR USING 'x'
            syntax_error: expected: end of statement, found: USING @1:53-1:58
        ALTER TABLE flights ALTER COLUMN delay SET NOT NULL
            unsupported: ALTER COLUMN does not do 'SET NOT NULL' @1:34-1:39 [ALTER TABLE adds, drops and renames columns, gives them a wider type, sets write_level, read_level, ttl, schemaless, partition_size_hint, partition_bytes_max and partition_rows_max, and splits partitions]
        ALTER TABLE flights ADD CONSTRAINT c UNIQUE (origin)
            unsupported: ALTER TABLE does not do 'ADD CONSTRAINT c UNIQUE (origin)' @1:36-1:52 [ALTER TABLE adds, drops and renames columns, gives them a wider type, sets write_level, read_level, ttl, schemaless, partition_size_hint, partition_bytes_max and partition_rows_max, and splits partitions]
        ALTER TABLE flights SET (replication_factor = 2)
            unsupported: replication_factor cannot be changed yet @1:26-1:44 [the settings that can be changed are write_level, read_level, ttl, ttl_column, schemaless, partition_size_hint, partition_bytes_max, partition_rows_max]
        ALTER TABLE flights SET (fsync = 'never')
            unsupported: fsync cannot be changed yet @1:26-1:31 [the settings that can be changed are write_level, read_level, ttl, ttl_column, schemaless, partition_size_hint, partition_bytes_max, partition_rows_max]
        ALTER TABLE flights SET (write_level = 'one', fsync_interval_ms = 100)
            unsupported: fsync_interval_ms cannot be changed yet @1:47-1:64 [the settings that can be changed are write_level, read_level, ttl, ttl_column, schemaless, partition_size_hint, partition_bytes_max, partition_rows_max]
        ALTER TABLE flights SET (wirte_level = 'one')
            invalid_statement: 'wirte_level' is not a setting of a table @1:26-1:37 [did you mean 'write_level'?]
        ALTER TABLE flights SET (ttl = '7d')
            invalid_statement: ttl goes by a TIMESTAMP of the primary key, and this key has none @1:32-1:36 [add one to the key, or make a table of events: without a PRIMARY KEY, it has '_ts']
        ALTER TABLE readings SET (ttl = 'for ever')
            invalid_statement: 'for ever' is no duration: a whole number and one of w, d, h, m, s, ms, such as '30d' @1:33-1:43 [ttl = 'none' keeps rows for ever]
        ALTER TABLE flights
            syntax_error: expected: ADD, RENAME, PARTITION, SWAP, DROP, REPLICA IDENTITY, SET, or SET TBLPROPERTIES after ALTER TABLE, found: EOF @1:20-1:20
    "#]]).await;
}

#[tokio::test]
async fn a_reader_may_only_read() {
    let world = World::new().await;
    let options = PlanOptions { read_only: true, ..PlanOptions::default() };
    for sql in [
        "INSERT INTO pairs VALUES (1, 'a', 1)",
        "DROP TABLE pairs",
        "ALTER TABLE pairs ADD COLUMN x INT",
        "CREATE TABLE t (a INT PRIMARY KEY)",
        "DELETE FROM pairs",
        "UPDATE pairs SET c = 1",
        "FLUSH",
        "OPTIMIZE TABLE pairs",
        "BACKUP DATABASE TO 's3://b'",
        "RESTORE DATABASE FROM 's3://b'",
    ] {
        assert!(refusal(&world, sql, &options).await.starts_with("forbidden"), "{sql}");
    }
    for sql in ["SELECT 1", "SHOW TABLES", "DESCRIBE flights", "EXPLAIN SELECT 1", "SHOW PARTITIONS flights"] {
        world.planner.plan(sql, &world.catalog, &options).await.unwrap();
    }
}

#[tokio::test]
async fn nesting_has_a_limit() {
    let world = World::new().await;
    let sql = format!("SELECT {}1{}", "(".repeat(5_000), ")".repeat(5_000));
    assert!(refusal(&world, &sql, &PlanOptions::default()).await.starts_with("limit_exceeded"));
    for chain in [" OR id = 1", " + id > 0 AND id", " UNION ALL SELECT 1 FROM flights", " JOIN flights ON true"] {
        let sql = |links| {
            format!(
                "SELECT 1 FROM flights{}{}",
                if chain.contains("id") { " WHERE id = 1" } else { "" },
                chain.repeat(links)
            )
        };
        assert!(refusal(&world, &sql(4_000), &PlanOptions::default()).await.starts_with("limit_exceeded"), "{chain}");
    }
    let sql = format!("SELECT 1 FROM flights WHERE {}", vec!["id = 1"; 120].join(" OR "));
    world.planner.plan(&sql, &world.catalog, &PlanOptions::default()).await.unwrap();
    // Lists are long, not deep.
    let sql = format!("SELECT 1 FROM flights WHERE id IN ({})", vec!["1 + 1"; 5_000].join(", "));
    world.planner.plan(&sql, &world.catalog, &PlanOptions::default()).await.unwrap();
}
