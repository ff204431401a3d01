//! `report.md`.

use super::format::fit;
use super::table::{Table, escaped};
use super::{Report, content};

impl Report {
    /// The report as Markdown, without plots.
    pub fn markdown(&self) -> String {
        let mut text = format!("# {}\n", escaped(&self.title));
        let mut paragraph = |part: String| text += &format!("\n{}\n", part.trim_end());
        if !self.expected.is_empty() {
            paragraph(format!("Expected: {}", escaped(&self.expected)));
        }
        if self.smoke {
            paragraph(format!("**{}**", content::SMOKE));
        }
        let facts = content::facts(self);
        paragraph(facts.iter().map(|(name, value)| format!("- {name}: {}\n", escaped(value))).collect());
        if !self.command.is_empty() {
            paragraph(format!("```sh\n{}\n```", fit(&self.command, 1000)));
        }
        let mut section = |title: &str, table: &Table, note: &str| {
            if !table.rows.is_empty() {
                [format!("## {title}"), table.markdown(), note.to_string()]
                    .into_iter()
                    .filter(|part| !part.is_empty())
                    .for_each(&mut paragraph);
            }
        };
        section("Passes", &content::passes(self), "");
        section("Notes", &content::notes(self), "");
        section("Metrics", &content::metrics(self), "");
        let (latency, speedup) = (content::latency(self), content::speedup(self));
        if latency.columns.len() > 2 {
            section("Latency, ms", &latency, if speedup.columns.len() > 2 { "" } else { content::TURNS });
        }
        if speedup.columns.len() > 2 {
            section("Speed-up over the first row", &speedup, content::TURNS);
        }
        section("Layers after the last pass", &content::layers(self), content::LAYERS);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::super::sample;

    #[test]
    fn a_small_report_reads_so() {
        assert_eq!(sample::report().markdown(), EXPECTED);
    }

    const EXPECTED: &str = r#"# lenet5-deep-compression

Expected: LeNet-5 on MNIST: 99.2 % -> 99.2 %, 39x smaller (Han et al. 2016, table 1: 0.80 % -> 0.74 %, 39x)

**SMOKE RUN: epochs and data are cut down. The figures show that the pipeline works, not what the methods achieve.**

- data: mnist: 55,000 training, 5,000 validation, 10,000 test images
- device: flex
- seed: 7
- config hash: 3f9a1c0de4b25a77
- versions: briquette 0.1.0, burn 0.22.1
- date: 2026-01-02T03:04:05Z

```sh
cargo xtask run configs/lenet5-deep-compression.toml --smoke
```

## Passes

| pass | method | accuracy % | error % | parameters | non-zero | bits | file bytes | ratio | MACs | ms b1t1 | seconds |
|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|
| 0 | train | 99.21 | 0.79 | 431,080 | 431,080 | 13,794,560 | 1,725,012 | 1.00x | 2,293,000 | 0.210 | 312.4 |
| 1 | magnitude | 99.23 | 0.77 | 431,080 | 36,340 | 1,344,580 | 201,340 | 8.57x | 369,839 | 0.105 | 156.2 |
| 2 | kmeans-sharing | 99.20 | 0.80 | 431,080 | 36,340 | 374,300 | 57,120 | 30.2x | 369,839 | 0.0700 | 104.1 |
| 3 | encode | 99.20 | 0.80 | 431,080 | 36,340 | 308,889 | 44,012 | 39.2x | 369,839 | 0.0525 | 78.1 |

## Metrics

| metric | value | meaning |
|---|---:|---|
| α, parameters | 11.9x | compression rate a / a\*, by parameters that are not zero |
| α, bits | 44.7x | compression rate a / a\*, by stored bits: values, indexes, codebooks |
| α, bytes | 39.2x | compression rate a / a\*, by the size of the file |
| β, survey | 38.19 | (a − a\*) / a\* by file size, as the survey prints it: α − 1, no share |
| saving | 97.45 % | 1 − a\* / a by file size: the share of the file that is gone |
| δ, batch 1, 1 thread | 4.00x | speed-up s / s\* of latencies, first network over last, median of turns; half of the turns from 3.80x to 4.16x |
| δ, batch 32, 1 thread | 4.00x | speed-up s / s\* of latencies, first network over last, median of turns; half of the turns from 3.80x to 4.16x |
| MACs | 6.20x | multiply-accumulates of one sample, first network over last; computed |

## Latency, ms

| pass | method | batch 1, 1 thread | batch 32, 1 thread |
|---:|---|---:|---:|
| 0 | train | 0.210 (0.200 to 0.220) | 5.90 (5.80 to 6.38) |
| 1 | magnitude | 0.105 (0.100 to 0.110) | 2.95 (2.90 to 3.19) |
| 2 | kmeans-sharing | 0.0700 (0.0667 to 0.0733) | 1.97 (1.93 to 2.13) |
| 3 | encode | 0.0525 (0.0500 to 0.0550) | 1.48 (1.45 to 1.59) |

## Speed-up over the first row

| pass | method | batch 1, 1 thread | batch 32, 1 thread |
|---:|---|---:|---:|
| 0 | train | 1.00x (0.95x to 1.04x) | 1.00x (0.95x to 1.04x) |
| 1 | magnitude | 2.00x (1.90x to 2.08x) | 2.00x (1.90x to 2.08x) |
| 2 | kmeans-sharing | 3.00x (2.85x to 3.12x) | 3.00x (2.85x to 3.12x) |
| 3 | encode | 4.00x (3.80x to 4.16x) | 4.00x (3.80x to 4.16x) |

Median and quartiles. Every network took turns with the first one, so that what slows the machine down slows both; the first row against itself shows what is noise.

## Layers after the last pass

| layer | kind | weights | kept % | value bits | index bits | codebook | bytes | size % | ratio |
|---|---|---:|---:|---:|---:|---:|---:|---:|---:|
| conv1 | conv2d | 520 | 65.96 | 4.10 | 4.40 | 32 | 365 | 17.52 | 5.71x |
| conv2 | conv2d | 25,050 | 12.00 | 4.10 | 4.40 | 32 | 3,194 | 3.19 | 31.4x |
| fc1 | linear | 400,500 | 8.00 | 4.10 | 4.40 | 32 | 34,043 | 2.12 | 47.1x |
| fc2 | linear | 5,010 | 18.98 | 4.10 | 4.40 | 32 | 1,011 | 5.04 | 19.8x |
| total | – | 431,080 | 8.43 | 4.10 | 4.40 | – | 38,612 | 2.24 | 44.7x |

Weights: trainable values of the layer at the start, biases included. Kept: those that are left and not zero. Value and index bits: mean per non-zero weight, after coding. Size: stored bits as a share of the layer at the start with 32 bits per value. A new layer was made by a pass and is measured against itself. The total counts every stored tensor; the file adds the topology and checksums.
"#;
}
