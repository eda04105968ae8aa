//! Opening: durable or refused, one gateway at a time, away or at fault.

use super::*;

behaviours! {
    a_new_store_is_durable_and_has_one_namespace,
}

async fn a_new_store_is_durable_and_has_one_namespace(place: Place) {
    let store = place.open().await;
    store.check_schema().await.unwrap();
    store.check_durable().await.unwrap();
    let namespace = store.namespace().await.unwrap();
    assert!(!namespace.is_nil());
    assert_eq!(store.bus_epoch().await.unwrap(), None);
    store.set_bus_epoch("e1").await.unwrap();
    drop(store);
    let again = place.open().await;
    assert_eq!(again.namespace().await.unwrap(), namespace);
    assert_eq!(again.bus_epoch().await.unwrap().as_deref(), Some("e1"));
    assert!(again.room().await.unwrap().is_some_and(|bytes| bytes > 0));
}

#[tokio::test]
async fn a_second_gateway_on_one_sqlite_file_is_refused_and_a_tool_is_not() {
    let Place::Sqlite(folder) = Place::sqlite() else { panic!("an SQLite file") };
    let url = format!("sqlite:{}", folder.path().join("deep/pons.db").display());
    let refused = open(&url, Role::Tool).await.err().expect("there is no store yet").to_string();
    assert!(refused.contains("start `pons run` first"), "{refused}");
    let gateway = open(&url, Role::Gateway).await.unwrap();
    let refused = open(&url, Role::Tool).await.unwrap().check_schema().await.unwrap_err().to_string();
    assert!(refused.contains("run `pons migrate`"), "{refused}");
    gateway.migrate().await.unwrap();
    append(&gateway, vec![message("C1", "P1")]).await;
    let refused = open(&url, Role::Gateway).await.err().expect("the file is taken").to_string();
    assert!(refused.contains("another `pons run`"), "{refused}");
    let tool = open(&url, Role::Tool).await.unwrap();
    tool.check_schema().await.unwrap();
    let found = tool.search(&Query { limit: 9, ..Query::default() }).await.unwrap();
    assert_eq!(found.len(), 1);
    route_all(&gateway, &[]).await;
    tool.request("admin", &[Request::Normalize(found[0].id)]).await.unwrap();
    assert_eq!(gateway.carry_out_requests(9).await.unwrap(), 1);
    drop(gateway);
    open(&url, Role::Gateway).await.unwrap();
}

#[tokio::test]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_database_of_a_version_before_history_is_brought_up_to_date() {
    let place = Place::postgres().await;
    place.run("CREATE TABLE schema_version (version integer PRIMARY KEY, applied_us bigint NOT NULL)").await;
    for before in migrate::POSTGRES.iter().filter(|migration| migration.version < 6) {
        place.run(before.sql).await;
        place.run(&format!("INSERT INTO schema_version VALUES ({}, 0)", before.version)).await;
    }
    let (patient, condition) = (Uuid::from_u128(1), Uuid::from_u128(2));
    place
        .run(&format!(
            "INSERT INTO resource (id, version, patient, message, resource_type, state)
             VALUES ('{condition}', 3, '{patient}', '{patient}', 'Condition', '\\x00')"
        ))
        .await;
    let store = place.open().await;
    store.check_schema().await.unwrap();
    let leases = lanes(&store).await;
    let mut tx = store.begin_record(&leases).await.unwrap();
    let within = tx.within(Uuid::from_u128(9), patient, "Condition", 9).await.unwrap();
    assert_eq!(within, [condition], "nobody asked in which encounter it was");
    append(&store, vec![message("C1", "P1")]).await;
    let open = all_open(&store).await;
    record(&store, Recording { results: vec![routed(&open[0])], ..Recording::default() }).await.unwrap();
    let made = store.made(open[0].id).await.unwrap();
    assert_eq!((made.len(), &made[0].made), (1, &Vec::new()));
    assert_eq!(store.held(&[condition]).await.unwrap()[0].recorded_at, None, "nobody wrote down when");
    place.drop_database().await;
}

#[tokio::test]
async fn a_store_is_named_by_its_url() {
    for url in ["mysql://localhost/x", "/var/lib/pons", "", "postgres://[broken"] {
        assert!(matches!(open(url, Role::Gateway).await.err(), Some(StoreError::Setup(_))), "{url}");
    }
}

#[tokio::test]
async fn a_database_that_is_away_is_no_mistake_of_ours() {
    // A port on which nobody listens: bound, and given back.
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let store = open(&format!("postgres://nobody@127.0.0.1:{port}/none"), Role::Gateway).await.unwrap();
    assert!(matches!(store.append(many(1)).await, Err(StoreError::Away(_))));
    assert!(matches!(store.migrate().await, Err(StoreError::Away(_))));
    assert!(matches!(store.check_durable().await, Err(StoreError::Away(_))));
}

#[tokio::test]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_database_that_loses_what_it_confirmed_is_refused() {
    let place = Place::postgres().await;
    let store = place.open().await;
    store.check_durable().await.unwrap();
    let Place::Postgres { server, name, .. } = &place else { panic!("a PostgreSQL database") };
    run(server, &format!("ALTER DATABASE {name} SET synchronous_commit = off")).await;
    let refused = store.check_durable().await.unwrap_err().to_string();
    assert!(refused.contains("synchronous_commit = off"), "{refused}");
    place.drop_database().await;
}

#[tokio::test]
#[ignore = "needs PostgreSQL: tests/run starts it"]
async fn a_connection_that_is_cut_is_away_and_the_next_one_works() {
    let place = Place::postgres().await;
    let store = place.open().await;
    append(&store, many(3)).await;
    let Place::Postgres { server, name, .. } = &place else { panic!("a PostgreSQL database") };
    let cut = format!("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{name}'");
    run(server, &cut).await;
    assert!(matches!(store.append(vec![message("X", "P1")]).await, Err(StoreError::Away(_))));
    append(&store, vec![message("X", "P1")]).await;
    run(server, &cut).await;
    let reading = async || store.open_messages(LaneSet::ALL, Seq(0), 99, usize::MAX).await;
    // Every cut connection of the pool may answer once that it is gone.
    for _ in 0..10 {
        match reading().await {
            Ok(open) => assert_eq!(open.len(), 4),
            Err(error) => assert!(matches!(error, StoreError::Away(_)), "{error:?}"),
        }
    }
    assert_eq!(reading().await.unwrap().len(), 4);
    place.drop_database().await;
}
