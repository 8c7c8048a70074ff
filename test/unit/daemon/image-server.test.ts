import assert from 'node:assert/strict';
import { readdir, truncate } from 'node:fs/promises';
import { connect } from 'node:net';
import { dirname } from 'node:path';
import { test } from 'node:test';
import { checkServerOptions, ImageServer, type ImageServerOptions } from '../../../src/server.ts';
import { type Cleanup, temporaryFile } from '../../support/temporary.ts';

const listen = { host: '127.0.0.1', port: 0 };

async function rawImage(t: Cleanup, name = 'disk.raw'): Promise<string> {
  const path = await temporaryFile(t, name, '');
  await truncate(path, 1024 * 1024);
  return path;
}

async function started(t: Cleanup, options: Partial<ImageServerOptions> & Pick<ImageServerOptions, 'exports'>) {
  const server = await ImageServer.start({ listen, ...options });
  t.after(() => server.close({ graceMs: 0 }));
  return server;
}

test('every image has a URL, a target and a LUN', async (t) => {
  const image = await rawImage(t);
  const server = await started(t, { exports: [{ image, format: 'raw' }] });
  const { port } = server.address;
  assert.deepEqual(server.images, [
    {
      request: { image, format: 'raw' },
      url: `iscsi://127.0.0.1:${port}/iqn.2026-11.lunette.host:disk/0`,
      target: 'iqn.2026-11.lunette.host:disk',
      lun: 0,
      format: 'raw',
      size: 1024 * 1024,
      readOnly: false,
    },
  ]);
  assert.equal(server.sessions, 0);
});

test('after close nothing listens, the image can be opened again, and a second close is harmless', async (t) => {
  const image = await rawImage(t);
  const server = await started(t, { exports: [{ image }] });
  const { port } = server.address;
  await Promise.all([server.close(), server.close()]);
  await assert.rejects(
    new Promise((resolve, reject) => connect(port, '127.0.0.1').once('connect', resolve).once('error', reject)),
    { code: 'ECONNREFUSED' },
  );
  await started(t, { exports: [{ image }] });
});

test('when one image fails none is served, and those that were open are closed', async (t) => {
  const image = await rawImage(t);
  await assert.rejects(started(t, { exports: [{ image }, { image: '/nonexistent' }] }), {
    code: 'NOT_FOUND',
    path: '/nonexistent',
  });
  await started(t, { exports: [{ image }] });
});

test('when listening fails no temporary overlay is left behind, and the image is closed', async (t) => {
  const image = await rawImage(t);
  const first = await started(t, { exports: [{ image: await rawImage(t) }] });
  await assert.rejects(started(t, { exports: [{ image, ephemeral: true }], listen: first.address }), {
    code: 'EXISTS',
  });
  assert.deepEqual(await readdir(dirname(image)), ['disk.raw']);
  await started(t, { exports: [{ image }] });
});

test('units differ in serial number by machine, place, target and LUN, and keep it over restarts', async (t) => {
  const [a, b] = [await rawImage(t), await rawImage(t)];
  const serials = async (exports: readonly string[], oneTarget: boolean) => {
    const server = await ImageServer.start({
      listen,
      oneTarget,
      exports: exports.map((image) => ({ image, readOnly: true })),
    });
    const found = server.identities.map(({ serial }) => serial);
    await server.close();
    return found;
  };
  const first = await serials([a, b, a], true);
  assert.equal(new Set(first).size, 3);
  assert.deepEqual(await serials([a, b, a], true), first);
  assert.notDeepEqual(await serials([a, b, a], false), first);
});

test('contradictions are found before anything is opened', () => {
  const check = (options: Partial<ImageServerOptions>) => () =>
    checkServerOptions({ listen, exports: [{ image: '/nonexistent' }], ...options });
  assert.doesNotThrow(check({}));
  assert.throws(check({ exports: [] }), { code: 'INVALID' });
  assert.throws(check({ name: 'a/b' }), { code: 'INVALID' });
  assert.throws(check({ exports: [{ image: 'a', ephemeral: true, overlay: 'b' }] }), { code: 'INVALID', path: 'a' });
  assert.throws(check({ exports: [{ image: 'a', forceShare: true }] }), { code: 'INVALID' });
  for (const request of [{ readOnly: true }, { snapshot: 's' }, { ephemeral: true }, { overlay: 'o' }]) {
    assert.doesNotThrow(check({ exports: [{ image: 'a', forceShare: true, ...request }] }));
  }
});
