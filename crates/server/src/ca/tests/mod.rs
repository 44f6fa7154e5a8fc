//! The shell over a world in memory: starts, rotations, crashes at every effect, operators, upstream.

mod clock;
mod logs;
mod rotation;
mod signing;
mod upstream;
mod world;
