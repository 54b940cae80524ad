//! Pages of other sites.
//!
//! A browser lets any page send simple requests to any address, loopback included, and open WebSockets there; and who asks
//! is not authenticated. But it says where the page is from, in `Origin`, which the page cannot change. Programs that are
//! no browsers send none.

use actix_web::body::MessageBody;
use actix_web::dev::{ServiceRequest, ServiceResponse};
use actix_web::http::header::ORIGIN;
use actix_web::middleware::Next;
use shoal_kernel::{Error, ErrorCode};

use super::problem::Failure;

/// Refuses requests that a page of another origin made a browser send.
///
/// # Errors
/// `Origin` is there, and is not the address that the request is for.
pub async fn same_origin<B: MessageBody>(
    request: ServiceRequest,
    next: Next<B>,
) -> Result<ServiceResponse<B>, actix_web::Error> {
    let foreign = request.headers().get(ORIGIN).is_some_and(|origin| {
        let authority =
            origin.to_str().ok().and_then(|origin| origin.split_once("://")).map(|(_, authority)| authority);
        authority.is_none_or(|authority| !authority.eq_ignore_ascii_case(request.connection_info().host()))
    });
    if foreign {
        let error = Error::new(ErrorCode::Forbidden, "the request comes from a page of another site")
            .with_help("open that page from this node's own address, or ask from a program");
        return Err(Failure::from(error).into());
    }
    next.call(request).await
}
