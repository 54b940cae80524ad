//! `/`: what stands here.

use actix_web::HttpResponse;
use actix_web::http::header::ContentType;
use actix_web::web::Data;

use super::Doors;

const PAGE: &str = include_str!("index.html");

pub(super) async fn index(doors: Data<Doors>) -> HttpResponse {
    let state = match doors.backend.ready() {
        Ok(()) => "ready".to_owned(),
        Err(error) => escape(error.message()),
    };
    let page = PAGE.replace("{node}", &doors.backend.node().to_string()).replace("{state}", &state);
    HttpResponse::Ok().insert_header(ContentType::html()).body(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
