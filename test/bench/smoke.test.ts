/** Every benchmark runs to its end at its smoke size: what it measures then says nothing, that it works does. */

import { readdirSync } from 'node:fs';
import { test } from 'node:test';
import { fileURLToPath } from 'node:url';
import { benchmarks, runBenchmark } from '../support/bench.ts';

const folder = fileURLToPath(new URL('.', import.meta.url));
for (const file of readdirSync(folder, { recursive: true, encoding: 'utf8' }).sort()) {
  if (file.endsWith('.bench.ts')) await import(new URL(file, import.meta.url).href);
}

for (const benchmark of benchmarks) {
  test(`benchmark ${benchmark.name} runs`, { skip: benchmark.skip() }, async (t) => {
    await runBenchmark(benchmark, { smoke: true, seed: 1, print: (line) => t.diagnostic(line) });
  });
}
