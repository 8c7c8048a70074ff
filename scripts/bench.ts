/**
 * Runs the benchmarks at full size: `npm run bench`, or `npm run bench -- iscsi cache` for those whose name has one of the words.
 * `--smoke` runs the small sizes that the tests run.
 */

import { readdirSync } from 'node:fs';
import { join } from 'node:path';
import { fileURLToPath, pathToFileURL } from 'node:url';
import { benchmarks, runBenchmark } from '../test/support/bench.ts';
import { ensureBuilt } from '../test/support/built.ts';
import { seedOfRun } from '../test/support/random.ts';

// They measure what users run.
ensureBuilt();
const folder = fileURLToPath(new URL('../test/bench', import.meta.url));
const words = process.argv.slice(2).filter((word) => !word.startsWith('--'));
const smoke = process.argv.includes('--smoke');

for (const file of readdirSync(folder, { recursive: true, encoding: 'utf8' }).sort()) {
  if (file.endsWith('.bench.ts')) await import(pathToFileURL(join(folder, file)).href);
}
const seed = seedOfRun();
console.log(`Node ${process.version}, LUNETTE_SEED=${seed}`);
let failed = 0;
for (const benchmark of benchmarks) {
  if (words.length > 0 && !words.some((word) => benchmark.name.includes(word))) continue;
  console.log(`\n${benchmark.name}`);
  const skip = benchmark.skip();
  if (skip !== false) {
    console.log(`  not run: ${skip}`);
    continue;
  }
  try {
    await runBenchmark(benchmark, { smoke, seed, print: (line) => console.log(line) });
  } catch (error) {
    failed++;
    console.log(`  failed: ${error instanceof Error ? error.stack : error}`);
  }
}
process.exitCode = failed === 0 ? 0 : 1;
