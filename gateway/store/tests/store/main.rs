//! What a store promises, on simulated and on real disks.

mod clock;
mod cuts;
mod damage;
mod devices;
mod faults;
mod groups;
mod kill;
mod memory;
mod model;
mod stall;
mod support;
mod thread;
mod tools;
