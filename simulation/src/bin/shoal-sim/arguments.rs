//! What the command line says of runs.

use std::io;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use clap::{Args, ValueEnum};
use shoal_kernel::Planted;
use shoal_simulation::run::{NODES_MAX, RunOptions, Subject};

/// What fixes one run, or what many have in common.
#[derive(Args)]
pub struct OneArguments {
    /// The seed, or the first one; 1, or the scenario's, unless given.
    #[arg(long)]
    pub seed: Option<u64>,
    /// Nodes of the cluster.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: Option<u16>,
    /// Virtual minutes under load and faults, at most 1 unless given; the heal and the checks come on top.
    #[arg(long)]
    minutes: Option<f64>,
    /// What is simulated.
    #[arg(long, value_enum)]
    subject: Option<SubjectName>,
    /// A TOML file that fixes what is drawn from the seed otherwise; see simulation/scenarios.
    #[arg(long, value_name = "FILE")]
    pub scenario: Option<PathBuf>,
    /// Switches on a bug, to see that it is found; `shoal-sim bugs --list` names them.
    #[arg(long, value_name = "BUG", value_parser = planted)]
    planted: Option<Planted>,
    #[command(flatten)]
    jobs: JobsArguments,
}

/// How many runs at once.
#[derive(Args)]
pub struct JobsArguments {
    /// Runs so many at a time; by default as many as there are cores.
    #[arg(long, value_parser = clap::value_parser!(u16).range(1..=1024))]
    jobs: Option<u16>,
}

impl JobsArguments {
    pub fn get(&self) -> NonZeroUsize {
        let given = self.jobs.and_then(|jobs| NonZeroUsize::new(usize::from(jobs)));
        given.unwrap_or_else(|| thread::available_parallelism().unwrap_or(NonZeroUsize::MIN))
    }
}

/// Many runs.
#[derive(Args)]
pub struct RunArguments {
    #[command(flatten)]
    pub one: OneArguments,
    /// How many seeds, counting up; 1 unless given, without end with `--for`.
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    seeds: Option<u64>,
    /// Begins no more seeds after this time: 90s, 10m, 2h.
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    pub time: Option<Duration>,
    /// Writes every event of the run, one line each.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "time"])]
    pub trace: Option<PathBuf>,
    /// Writes down what is needed to run exactly this again, with its faults spelled out.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["seeds", "time"])]
    pub record: Option<PathBuf>,
    /// Writes what all seeds came to, as JSON.
    #[arg(long, value_name = "FILE")]
    pub report: Option<PathBuf>,
    /// Runs every seed twice and compares the hashes.
    #[arg(long)]
    pub twice: bool,
    /// Runs every seed a second time, in another build of this program, and compares the hashes.
    #[arg(long, value_name = "PROGRAM", conflicts_with = "twice")]
    pub against: Option<PathBuf>,
    /// Goes on after a seed that fails.
    #[arg(long)]
    pub keep_going: bool,
}

impl RunArguments {
    pub fn seeds(&self) -> u64 {
        self.seeds.unwrap_or(if self.time.is_some() { u64::MAX } else { 1 })
    }

    pub fn base(&self, unless_given: RunOptions) -> io::Result<RunOptions> {
        self.one.base(unless_given)
    }
}

impl OneArguments {
    /// What all seeds have in common: the scenario's file, and over it what the command line says.
    pub fn base(&self, unless_given: RunOptions) -> io::Result<RunOptions> {
        let mut base = match &self.scenario {
            None => unless_given,
            Some(path) => {
                let wrong = |error: &dyn std::fmt::Display| io::Error::other(format!("{}: {error}", path.display()));
                let text = std::fs::read_to_string(path).map_err(|error| wrong(&error))?;
                toml::from_str(&text).map_err(|error| wrong(&error))?
            }
        };
        base.seed = self.seed.unwrap_or(base.seed);
        base.nodes = self.nodes.or(base.nodes);
        // Bounded by what a person can wait for; the cast saturates.
        let seconds = self.minutes.map(|minutes| (minutes * 60.0).clamp(1.0, 1e6) as u64);
        base.seconds = seconds.or(base.seconds);
        base.subject = match self.subject {
            Some(SubjectName::Cluster) => Subject::Cluster,
            Some(SubjectName::Echo) => Subject::Echo,
            None => base.subject,
        };
        base.planted = self.planted.or(base.planted);
        Ok(base)
    }

    pub fn jobs(&self) -> NonZeroUsize {
        self.jobs.get()
    }
}

/// A planted bug by its name.
pub fn planted(name: &str) -> Result<Planted, String> {
    let names = Planted::ALL.iter().map(|planted| planted.as_str());
    let known = Planted::ALL.iter().copied().find(|planted| planted.as_str() == name);
    known.ok_or_else(|| format!("there is no bug '{name}'; {}", shoal_kernel::suggest::help(name, names)))
}

/// A time as people write it: a number and its unit.
pub fn time(text: &str) -> Result<Duration, String> {
    let wrong = || format!("'{text}' is no time: a number and s, m or h, as in 90s, 10m, 2h");
    let place = text.find(|letter: char| !letter.is_ascii_digit()).ok_or_else(wrong)?;
    let (number, unit) = text.split_at(place);
    let seconds = match unit {
        "s" => 1,
        "m" => 60,
        "h" => 3_600,
        _ => return Err(wrong()),
    };
    number.parse::<u32>().map(|number| Duration::from_secs(u64::from(number) * seconds)).map_err(|_| wrong())
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum SubjectName {
    /// Whole nodes under a workload.
    Cluster,
    /// Supervised actors that echo messages: proves the simulator itself.
    Echo,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read_as_people_write_them() {
        assert_eq!(time("90s"), Ok(Duration::from_secs(90)));
        assert_eq!(time("10m"), Ok(Duration::from_secs(600)));
        assert_eq!(time("2h"), Ok(Duration::from_secs(7_200)));
        for wrong in ["", "10", "m", "-1m", "1d", "99999999999s", "1 m"] {
            assert!(time(wrong).is_err(), "{wrong}");
        }
    }
}
