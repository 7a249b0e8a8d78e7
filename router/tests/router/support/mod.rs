//! What several tests stand on. The gateway's and the bench's tests include some of these files, too.

pub(crate) mod certificates;
pub(crate) mod generated;
pub(crate) mod plane;
pub(crate) mod redis_cluster;
pub(crate) mod schemathesis;
