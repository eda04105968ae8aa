//! The running process: tasks, RabbitMQ, SQL, HTTP and the configuration.

pub mod bus;
pub mod lifecycle;
pub mod store;
