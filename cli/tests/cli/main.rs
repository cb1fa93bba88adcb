//! The tool as its users run it, against a registry in memory that can be strict, slow-witted or hostile.

mod answers;
mod auth;
#[cfg(test)]
mod aws;
#[cfg(test)]
mod doctor;
#[cfg(test)]
mod forecast;
#[cfg(test)]
mod forge;
mod hostile;
#[cfg(test)]
mod lines;
#[cfg(test)]
mod onboard;
#[cfg(test)]
mod redrive;
#[cfg(test)]
mod registry;
#[cfg(test)]
mod report;
#[cfg(test)]
mod retain;
#[cfg(test)]
mod run;
#[cfg(test)]
mod simulate;
#[cfg(test)]
mod trace;
mod transfer;
#[cfg(test)]
mod why;
