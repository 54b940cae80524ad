//! `/`: what stands here.

use actix_web::http::header::ContentType;
use actix_web::web::Data;
use actix_web::{HttpRequest, HttpResponse};

use super::Doors;

const PAGE: &str = include_str!("index.html");

pub(super) async fn index(request: HttpRequest, doors: Data<Doors>) -> HttpResponse {
    let state = match doors.backend.ready() {
        Ok(()) => "ready".to_owned(),
        Err(error) => escape(error.message()),
    };
    let page = PAGE.replace("{node}", &doors.backend.node().to_string()).replace("{state}", &state);
    // The address by which the reader has come works for the reader.
    let page = page.replace("{address}", &escape(request.connection_info().host()));
    HttpResponse::Ok().insert_header(ContentType::html()).body(page)
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
