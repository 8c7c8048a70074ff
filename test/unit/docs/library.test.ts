/** The examples of docs/library.md run, and print what they say. */

import assert from 'node:assert/strict';
import { writeFile } from 'node:fs/promises';
import { join } from 'node:path';
import { test } from 'node:test';
import { pathToFileURL } from 'node:url';
import { transform } from 'esbuild';
import { built } from '../../support/built.ts';
import { run } from '../../support/process.ts';
import { readText } from '../../support/source.ts';
import { temporaryDirectory } from '../../support/temporary.ts';

/** The modules' names and where they are, as package.json has it. */
function modulesByName(): Map<string, string> {
  const { exports } = JSON.parse(readText('package.json') as string) as {
    exports: Record<string, { default?: string }>;
  };
  const found = new Map<string, string>();
  for (const [name, { default: file }] of Object.entries(exports)) {
    if (file === undefined) continue;
    found.set(name.replace('.', 'lunette'), pathToFileURL(built(file.replace('./dist/', ''))).href);
  }
  return found;
}

test('the examples of docs/library.md run in their order and print what their comments say', async (t) => {
  const folder = await temporaryDirectory(t);
  const text = readText('docs/library.md') as string;
  const examples = [...text.matchAll(/^```ts\n(.*?)^```$/gms)].map((match) => match[1] as string);
  assert.ok(examples.length >= 5);
  const modules = modulesByName();
  for (const [i, example] of examples.entries()) {
    const code = example.replace(/'(lunette\/\w+)'/g, (_, name: string) => {
      const source = modules.get(name);
      assert.notEqual(source, undefined, `package.json exports no ${name}`);
      return `'${source}'`;
    });
    const file = join(folder, `example-${i}.mjs`);
    await writeFile(file, (await transform(code, { loader: 'ts' })).code);
    const { status, stdout, stderr } = await run(process.execPath, [file], {
      cwd: folder,
    });
    assert.equal(status, 0, `${example}\n${stderr}`);
    for (const [, expected] of example.matchAll(/^.*console\.log\(.*\/\/ (.*)$/gm)) {
      assert.ok(stdout.split('\n').includes(expected as string), `${expected} is not in:\n${stdout}`);
    }
  }
});
