//! The project's tasks. `cargo xtask --help` lists them.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "it talks to whoever runs it")]

mod arm64;
mod aws;
mod check;
mod cold;
mod commands;
mod demo;
mod deployed;
mod environment;
mod fuzz;
mod guard;
mod paths;
mod process;
mod release;
mod requests;
mod site;
mod stack;
mod test;
mod tools;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context as _;
use clap::{Parser, Subcommand};

use crate::environment::{LocalSetup, Settings};

/// Stoker's tasks. Everything they install or write stays under `.stoker/` and `target/` of this checkout.
///
/// No AWS account is needed, and none is touched: they deploy to an AWS that runs on this machine.
#[derive(Debug, Parser)]
#[command(bin_name = "cargo xtask", version, propagate_version = false, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Shows Stoker at work: deploys it to a local AWS, pushes, merges, and compares build times
    Demo(demo::Args),
    /// Runs all tests, those against a deployed stack included
    Test(test::Args),
    /// Measures what cold starts of the functions cost, beside programs that do less and other languages
    Cold,
    /// Fuzzes the parsers of all that comes from outside
    Fuzz(fuzz::Args),
    /// Checks what needs no running stack: formatting, lints, the template, dependencies, workflows
    Check(check::Args),
    /// Makes the files of a release: programs for both processors, bills of materials, checksums
    Release(release::Args),
    /// Starts a local AWS and deploys Stoker to it; `down` ends it
    Up(Up),
    /// Deploys the working tree to the local AWS that `up` started
    Deploy(Deploy),
    /// Prints what a function has logged in the local AWS
    Logs {
        /// The function, such as `promote-cache`
        function: String,
    },
    /// Ends the local AWS, and forgets what was in it
    Down,
    /// Installs the tools that the other tasks need (they do it themselves when it is due)
    Tools,
}

#[derive(Debug, clap::Args)]
struct Up {
    /// Let functions do whatever they like; otherwise the local AWS enforces their roles in template.yaml, on
    /// its own API
    #[arg(long)]
    ignore_roles: bool,
    #[command(flatten)]
    deploy: Deploy,
}

#[derive(Debug, clap::Args)]
struct Deploy {
    /// The policy document to deploy
    #[arg(long, value_name = "FILE", default_value = "policy/stoker.yaml")]
    policy: PathBuf,
    /// Sets a parameter of template.yaml; may be repeated
    #[arg(long = "parameter", value_name = "NAME=VALUE", value_parser = parameter)]
    parameters: Vec<(String, String)>,
}

fn parameter(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write it as NAME=VALUE")?;
    Ok((name.to_owned(), value.to_owned()))
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.task {
        Task::Demo(args) => demo::run(&args),
        Task::Test(args) => test::run(&args, is_task),
        Task::Cold => cold::run(),
        Task::Fuzz(args) => fuzz::run(&args),
        Task::Check(args) => check::run(&args),
        Task::Release(args) => release::run(&args),
        Task::Up(args) => up(&args),
        Task::Deploy(args) => {
            let setup = running()?;
            deploy(&setup, &args)
        }
        Task::Logs { function } => {
            let lines = running()?.aws().logs(&stack::function(&function))?;
            for line in lines {
                println!("{line}");
            }
            Ok(())
        }
        Task::Down => down(),
        Task::Tools => tools::install(),
    }
}

fn up(args: &Up) -> anyhow::Result<()> {
    tools::install()?;
    stack::build()?;
    let settings = Settings { ignore_roles: args.ignore_roles, ..Settings::default() };
    let setup = LocalSetup::start(&settings)?;
    deploy(&setup, &args.deploy)?;
    println!("\nthe local AWS answers at {}; to look around with the AWS CLI or SDKs:", setup.endpoint());
    println!("  export AWS_ENDPOINT_URL={} AWS_DEFAULT_REGION={}", setup.endpoint(), aws::REGION);
    println!("  export AWS_ACCESS_KEY_ID={} AWS_SECRET_ACCESS_KEY={}", aws::KEY_ID, aws::SECRET_KEY);
    println!("`cargo xtask down` ends it");
    Ok(())
}

fn deploy(setup: &LocalSetup, args: &Deploy) -> anyhow::Result<()> {
    stack::build()?;
    let policy = paths::root().join(&args.policy);
    let policy =
        std::fs::read_to_string(&policy).with_context(|| format!("cannot read {}", policy.display()))?;
    stoker_core::policy::Policy::parse(&args.policy.display().to_string(), &policy)?;
    let parameters: Vec<_> = args.parameters.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
    let outputs = stack::deploy(setup, &policy, &parameters)?;
    for (name, value) in &outputs {
        println!("  {name:<24} {value}");
    }
    Ok(())
}

fn running() -> anyhow::Result<LocalSetup> {
    LocalSetup::attach()?.context("no local AWS is running; `cargo xtask up` starts one")
}

fn down() -> anyhow::Result<()> {
    if let Some(setup) = LocalSetup::attach()? {
        return setup.stop();
    }
    println!("no local AWS is running");
    Ok(())
}

/// Whether `cargo xtask` understands a command.
fn is_task(text: &str) -> anyhow::Result<()> {
    let words = text.split_whitespace().skip_while(|word| *word != "xtask");
    Cli::try_parse_from(words).map(drop).context("cargo xtask does not understand it")
}
