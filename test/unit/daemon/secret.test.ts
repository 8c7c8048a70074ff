import assert from 'node:assert/strict';
import { chmod } from 'node:fs/promises';
import { test } from 'node:test';
import { readSecret } from '../../../src/daemon/secret.ts';
import { temporaryFile } from '../../support/temporary.ts';

async function secretFile(t: Parameters<typeof temporaryFile>[0], text: string, mode = 0o600): Promise<string> {
  const path = await temporaryFile(t, 'secret', text);
  await chmod(path, mode);
  return path;
}

test('the secret is the first line, without its end', async (t) => {
  const warnings: string[] = [];
  for (const end of ['', '\n', '\r\n', '\nsecond line\n']) {
    const path = await secretFile(t, `twelve bytes${end}`);
    assert.equal(await readSecret(path, (text) => warnings.push(text)), 'twelve bytes');
  }
  assert.deepEqual(warnings, []);
});

test('a secret that is too short is refused, and the rule is explained', async (t) => {
  const path = await secretFile(t, 'eleven byte\n');
  await assert.rejects(
    readSecret(path, () => {}),
    { code: 'INVALID', path, message: /12 to 255 bytes, this one has 11/, help: /Windows takes 12 to 16/ },
  );
});

test('a file that is no secret is refused', async (t) => {
  const path = await secretFile(t, 'x'.repeat(100_000));
  await assert.rejects(
    readSecret(path, () => {}),
    { code: 'INVALID' },
  );
});

test('others being able to read it, and Windows not taking it, are warned about', async (t) => {
  const warnings: string[] = [];
  const path = await secretFile(t, 'seventeen bytes!!', 0o644);
  await readSecret(path, (text) => warnings.push(text));
  assert.match(warnings[0] ?? '', /17 bytes; Windows/);
  assert.match(warnings[1] ?? '', /mode 644.*chmod 600/);
});

test('a missing file is named', async () => {
  await assert.rejects(
    readSecret('/nonexistent/secret', () => {}),
    { code: 'NOT_FOUND', path: '/nonexistent/secret' },
  );
});
