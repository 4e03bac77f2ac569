//! What disturbs the whole cluster: the operator and the webhook killed, stopped, upgraded. One at a time: `--test-threads=1`.

mod operator;
mod rotation;
mod upgrade;
mod webhook;
