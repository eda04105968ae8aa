//! The harness of the whole-system tests: what stands around a real gateway when it is tested, measured or broken.
//!
//! Everything here is written apart from the gateway's own code (its own MLLP client, its own AMQP client), so that a
//! mistake of the gateway is not repeated by what judges it. Invariant: [`checker`] alone decides whether a run was
//! good, from three accounts: what the sender was told, what the subscribers saw, what the store says.

pub mod amqp;
pub mod checker;
pub mod command;
pub mod disk;
pub mod gateway;
pub mod generate;
pub mod lab;
pub mod mqtt;
pub mod proxy;
pub mod receiver;
pub mod requested;
pub mod rest;
pub mod sender;
pub mod services;
pub mod subjects;
pub mod webhook;
