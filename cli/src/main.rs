//! `stoker`: tools for the layer caches that BuildKit keeps in registries.
#![expect(clippy::format_push_string, reason = "reports are put together from lines; speed is no matter")]

mod args;
mod auth;
mod cache;
mod deployed;
mod doctor;
mod forecast;
mod html;
mod lines;
mod onboard;
mod outcome;
mod problem;
mod progress;
mod redrive;
mod reference;
mod remote;
mod report;
mod retain;
mod simulate;
mod text;
mod trace;
mod transfer;
mod why;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser as _};

use args::{CacheCommand, Cli, Command, PolicyCommand};
use outcome::{CommandOutcome, print};
use problem::Problem;

fn main() -> ExitCode {
    match Cli::parse().command {
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "stoker", &mut script);
            print(&String::from_utf8_lossy(&script));
            ExitCode::SUCCESS
        }
        Command::Cache(command) => run(async {
            match command {
                CacheCommand::Inspect(args) => cache::inspect::run(&args).await,
                CacheCommand::Merge(args) => cache::merge::run(&args).await,
                CacheCommand::Prune(args) => cache::prune::run(&args).await,
                CacheCommand::Diff(args) => cache::diff::run(&args).await,
                CacheCommand::Verify(args) => cache::verify::run(&args).await,
            }
        }),
        Command::Lines(args) => run(lines::list::run(&args)),
        Command::History(args) => run(lines::history::run(&args)),
        Command::Rollback(args) => run(lines::rollback::run(&args)),
        Command::Simulate(args) => run(simulate::run(&args)),
        Command::Policy(PolicyCommand::Check(args)) => run(retain::check::run(&args)),
        Command::Plan(args) => run(retain::plan_command::run(&args)),
        Command::Apply(args) => run(retain::apply::run(&args)),
        Command::Explain(args) => run(retain::explain::run(&args)),
        Command::Report(args) => run(report::run(&args)),
        Command::Forecast(args) => run(forecast::run(&args)),
        Command::Onboard(command) => run(async {
            match command {
                onboard::Command::Audit(args) => onboard::audit::run(&args).await,
                onboard::Command::Plan(args) => onboard::plan::run(&args).await,
                onboard::Command::Apply(args) => onboard::apply::run(&args).await,
                onboard::Command::Undo(args) => onboard::undo::run(&args).await,
                onboard::Command::Watch(args) => onboard::watch::run(&args).await,
            }
        }),
        Command::Doctor(args) => run(doctor::run(&args)),
        Command::Trace(args) => run(trace::run(&args)),
        Command::Why(args) => run(why::run(&args)),
        Command::Redrive(args) => run(redrive::run(&args)),
    }
}

fn run(command: impl Future<Output = Result<CommandOutcome, Problem>>) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            return report(&Problem::failed(format!("cannot start: {error}"), "free some resources"));
        }
    };
    let answer = runtime.block_on(command);
    // Requests that nobody waits for any more are left alone.
    runtime.shutdown_background();
    match answer {
        Ok(answer) => {
            print(&answer.text);
            if answer.success { ExitCode::SUCCESS } else { ExitCode::from(problem::NO) }
        }
        Err(problem) => report(&problem),
    }
}

fn report(problem: &Problem) -> ExitCode {
    let _ = writeln!(std::io::stderr(), "{problem}");
    problem.exit_code()
}
