/** Rules of the protocol that a client has to keep, and what it makes of servers that do not. */

import assert from 'node:assert/strict';
import { once } from 'node:events';
import { describe, type TestContext, test } from 'node:test';
import { ExtentBuffer, IoVec } from '../../../formats/index.ts';
import { NbdImage } from '../../../src/nbd/client.ts';
import { chunk, extendedChunk, pattern, simpleReply, u32, u64 } from '../../support/nbd-endpoint.ts';
import {
  exportInfo,
  FLAGS,
  HELLO,
  honestOption,
  optionReply,
  SCRIPTED_SIZE,
  type Script,
  ScriptedServer,
  type SeenRequest,
} from '../../support/nbd-scripted-server.ts';
import { randomFor } from '../../support/random.ts';

const GO = 7;
const NOTHING = Buffer.alloc(0);

async function opened(t: TestContext, script: Script) {
  const server = await ScriptedServer.start(t, script);
  const image = await NbdImage.open(server.url, { connections: 1, reconnectMs: 0, connectTimeoutMs: 2000 });
  t.after(() => image.close().catch(() => undefined));
  return { server, image };
}

async function read(image: NbdImage, offset: number, length: number): Promise<Buffer> {
  const bytes = Buffer.alloc(length, 0xdd);
  await image.readv(offset, IoVec.of(bytes));
  return bytes;
}

/** A server that answers reads with what it is told, and all else in order. */
function readsBy(answer: (request: SeenRequest) => Buffer): Script {
  return { request: (request) => (request.type === 0 ? answer(request) : simpleReply(request.cookie)) };
}

const data = (offset: number, length: number, { cookie, done }: { cookie: number; done: boolean }): Buffer =>
  chunk(1, Buffer.concat([u64(offset), pattern(offset, length)]), { cookie, done });
const hole = (offset: number, length: number, options: { cookie: number; done: boolean }): Buffer =>
  chunk(2, Buffer.concat([u64(offset), u32(length)]), options);
const none = (cookie: number, done = true): Buffer => chunk(0, NOTHING, { cookie, done });

describe('negotiation', () => {
  test('a server without GO is asked by EXPORT_NAME, with and without the zeroes', async (t) => {
    for (const [flag, zeroes] of [
      [3, 0],
      [1, 124],
    ] as const) {
      const server = await ScriptedServer.start(t, {
        hello: Buffer.concat([HELLO.subarray(0, 17), Buffer.from([flag])]),
        option: (option) => {
          if (option === 1) return Buffer.concat([honestOption(1), Buffer.alloc(zeroes)]);
          return optionReply(option, 0x80000001);
        },
        request: ({ cookie, offset, length }) => Buffer.concat([simpleReply(cookie), pattern(offset, length)]),
      });
      const image = await NbdImage.open(server.url, { readOnly: true });
      assert.equal(image.size, SCRIPTED_SIZE);
      assert.ok((await read(image, 77, 1000)).equals(pattern(77, 1000)));
      assert.deepEqual(server.options, [11, 8, 7, 1]);
      await image.close();
    }
  });

  test('a server of plain newstyle is asked by EXPORT_NAME only; one that has no such export just goes away', async (t) => {
    const hello = Buffer.concat([HELLO.subarray(0, 17), Buffer.from([0])]);
    const server = await ScriptedServer.start(t, {
      hello,
      option: () => Buffer.concat([honestOption(1), Buffer.alloc(124)]),
    });
    const image = await NbdImage.open(server.url, { readOnly: true });
    assert.deepEqual([image.size, server.options], [SCRIPTED_SIZE, [1]]);
    await image.close();
    await assert.rejects(NbdImage.open(server.url.replace('nbd+', 'nbds+')), { code: 'AUTH', message: /TLS/ });
    const none = await ScriptedServer.start(t, {
      hello,
      option: () => {
        for (const socket of none.sockets) socket.destroy();
        return NOTHING;
      },
    });
    await assert.rejects(NbdImage.open(none.url), { code: 'NOT_FOUND', message: /no export "disk"/ });
  });

  test('it takes leave with ABORT when it does not go on', async (t) => {
    for (const [type, code] of [
      [0x80000006, 'NOT_FOUND'],
      [0x80000002, 'ACCESS'],
      [0x80000007, 'DISCONNECTED'],
    ] as const) {
      const server = await ScriptedServer.start(t, {
        option: (option) => (option === GO ? optionReply(GO, type, Buffer.from('why')) : honestOption(option)),
      });
      await assert.rejects(NbdImage.open(server.url, { reconnectMs: 0 }), { code });
      for (const socket of server.sockets) await once(socket, 'close');
      assert.equal(server.options.at(-1), 2);
    }
  });

  test('where TLS is wanted it says how', async (t) => {
    const server = await ScriptedServer.start(t, { option: (option) => optionReply(option, 0x80000005) });
    await assert.rejects(NbdImage.open(server.url), { code: 'AUTH', message: /use nbds:/ });
  });

  for (const [what, script, code] of [
    ['no NBD', { hello: Buffer.from('HTTP/1.1 400 Bad Request\r\n') }, 'PROTOCOL'],
    ['oldstyle', { hello: Buffer.concat([Buffer.from('NBDMAGIC'), Buffer.alloc(200)]) }, 'UNSUPPORTED'],
    ['an answer to another option', { option: () => optionReply(99, 1) }, 'PROTOCOL'],
    [
      'an answer without magic',
      { option: () => Buffer.concat([Buffer.alloc(8), optionReply(11, 1).subarray(8)]) },
      'PROTOCOL',
    ],
    ['an answer of 4 GiB', { option: () => Buffer.concat([optionReply(11, 1).subarray(0, 16), u32(-1)]) }, 'PROTOCOL'],
    [
      'answers without end',
      { option: (o) => Buffer.concat(Array.from({ length: 200 }, () => optionReply(o, 3))) },
      'PROTOCOL',
    ],
    ['no size', { option: (o) => (o === GO ? optionReply(GO, 1) : honestOption(o)) }, 'PROTOCOL'],
    [
      'a size of 2^64 - 1',
      {
        option: (o) =>
          o === GO
            ? Buffer.concat([optionReply(GO, 3, exportInfo(2n ** 64n - 1n, FLAGS)), optionReply(GO, 1)])
            : honestOption(o),
      },
      'UNSUPPORTED',
    ],
    ...[
      [0, 4096, 65536],
      [3, 4096, 65536],
      [131_072, 131_072, 1 << 20],
      [4096, 4096, 512],
    ].map(
      ([min = 0, preferred = 0, max = 0]) =>
        [
          `blocks of ${min} to ${max} bytes`,
          {
            option: (o: number) =>
              o === GO
                ? Buffer.concat([
                    optionReply(GO, 3, exportInfo(SCRIPTED_SIZE, FLAGS)),
                    optionReply(GO, 3, Buffer.concat([Buffer.from([0, 3]), u32(min), u32(preferred), u32(max)])),
                    optionReply(GO, 1),
                  ])
                : honestOption(o),
          },
          'PROTOCOL',
        ] as const,
    ),
  ] as readonly (readonly [string, Script, string])[]) {
    test(`${what} is refused at once`, async (t) => {
      const server = await ScriptedServer.start(t, script);
      await assert.rejects(NbdImage.open(server.url, { connectTimeoutMs: 5000 }), { code });
    });
  }
});

describe('replies', () => {
  test('chunks come in any order, holes among them, and unknown flags mean nothing', async (t) => {
    const { image } = await opened(
      t,
      readsBy(({ cookie }) => {
        const parts = [
          data(3000, 1096, { cookie, done: false }),
          hole(1000, 1000, { cookie, done: false }),
          data(0, 1000, { cookie, done: false }),
          data(2000, 1000, { cookie, done: true }),
        ];
        (parts[1] as Buffer).writeUInt16BE(0x8000, 4);
        return Buffer.concat(parts);
      }),
    );
    const expected = pattern(0, 4096);
    expected.fill(0, 1000, 2000);
    assert.ok((await read(image, 0, 4096)).equals(expected));
  });

  test('reads of any length land where they were wanted, and nowhere else, however the bytes are cut', async (t) => {
    const random = randomFor(t);
    let sending = Promise.resolve();
    const { image } = await opened(t, {
      request: ({ type, cookie, offset, length }, socket) => {
        if (type !== 0) return simpleReply(cookie);
        const parts: Buffer[] = [];
        for (let at = 0; at < length; ) {
          const take = Math.min(length - at, random.between(1, 400_000));
          parts.push(data(offset + at, take, { cookie, done: at + take === length }));
          at += take;
        }
        const bytes = Buffer.concat(parts);
        // Cut anywhere, with time between for the other side to read.
        sending = sending.then(async () => {
          for (let at = 0; at < bytes.length; ) {
            const take = random.between(1, 200_000);
            await new Promise<void>((resolve) => socket.write(bytes.subarray(at, at + take), () => resolve()));
            at += take;
          }
        });
        return undefined;
      },
    });
    const one = async (): Promise<void> => {
      const length = random.between(1, random.fraction() < 0.5 ? 4096 : 600_000);
      const offset = random.between(0, SCRIPTED_SIZE - length);
      const memory = Buffer.alloc(length + 200, 0xdd);
      const cut = random.between(0, length);
      // Two segments with a gap between.
      const list = IoVec.of(memory, 50, cut).append(memory, 150 + cut, length - cut);
      await image.readv(offset, list);
      const expected = pattern(offset, length);
      const gap = Buffer.alloc(100, 0xdd);
      const [ends, middle] = [gap.subarray(0, 50), gap];
      const parts = [ends, expected.subarray(0, cut), middle, expected.subarray(cut), ends];
      assert.ok(memory.equals(Buffer.concat(parts)), `${length} bytes at ${offset}, cut at ${cut}`);
    };
    for (let round = 0; round < 8; round++) await Promise.all(Array.from({ length: 5 }, one));
  });

  for (const [what, answer] of [
    [
      'data that comes twice while other does not',
      (c: number) => [data(0, 2048, { cookie: c, done: false }), data(0, 2048, { cookie: c, done: true })],
    ],
    [
      'data that overlaps a hole',
      (c: number) => [hole(0, 2048, { cookie: c, done: false }), data(2000, 2048, { cookie: c, done: true })],
    ],
    ['data past the end of the question', (c: number) => [data(4000, 100, { cookie: c, done: true })]],
    [
      'data before the question',
      (c: number) => [chunk(1, Buffer.concat([u64(2n ** 64n - 8n), Buffer.alloc(8)]), { cookie: c })],
    ],
    ['data of no length', (c: number) => [chunk(1, u64(0), { cookie: c })]],
    ['a hole of no length', (c: number) => [hole(0, 0, { cookie: c, done: true })]],
    ['an end that is none', (c: number) => [data(0, 4096, { cookie: c, done: false }), none(c, false)]],
    ['an end with a payload', (c: number) => [chunk(0, Buffer.alloc(8), { cookie: c })]],
    ['a kind of chunk that nobody knows', (c: number) => [chunk(77, Buffer.alloc(8), { cookie: c })]],
    ['block status of a read', (c: number) => [chunk(5, Buffer.concat([u32(1), u32(4096), u32(0)]), { cookie: c })]],
    ['a chunk of 2 GiB', (c: number) => [chunk(0x8001, NOTHING, { cookie: c }).fill(0x7f, 16, 20)]],
    [
      'an error whose message is longer than it',
      (c: number) => [chunk(0x8001, Buffer.from([0, 0, 0, 5, 255, 255]), { cookie: c })],
    ],
    ['a simple reply', (c: number) => [simpleReply(c), pattern(0, 4096)]],
    ['a cookie that was not sent', (c: number) => [none(c + 1)]],
    ['an extended reply', (c: number) => [extendedChunk(0, NOTHING, { cookie: c })]],
    ['no magic', () => [Buffer.alloc(40)]],
  ] as const) {
    test(`${what}: the read fails and the connection ends`, async (t) => {
      const { image, server } = await opened(
        t,
        readsBy(({ cookie }) => Buffer.concat(answer(cookie))),
      );
      await assert.rejects(read(image, 0, 4096), { code: 'PROTOCOL', path: image.path });
      while (server.sockets.size > 0) await new Promise((resolve) => setImmediate(resolve));
    });
  }

  test('a part that is left out fails the read alone', async (t) => {
    const { image, server } = await opened(
      t,
      readsBy(({ cookie, length }) => data(0, length === 4096 ? 100 : length, { cookie, done: true })),
    );
    await assert.rejects(read(image, 0, 4096), { code: 'PROTOCOL', message: /left out/ });
    assert.ok((await read(image, 0, 512)).equals(pattern(0, 512)));
    assert.equal(server.connections, 1);
  });

  test('an error between the chunks fails the read, also one of a kind not known, and the connection goes on', async (t) => {
    let type = 0x8001;
    const { image, server } = await opened(
      t,
      readsBy(({ cookie }) =>
        Buffer.concat([
          data(0, 100, { cookie, done: false }),
          chunk(type, Buffer.concat([u32(28), Buffer.from([0, 4]), Buffer.from('full'), u64(50)]), {
            cookie,
            done: false,
          }),
          none(cookie),
        ]),
      ),
    );
    for (type of [0x8001, 0x8002, 0x8123]) {
      await assert.rejects(read(image, 0, 4096), { code: 'NO_SPACE', message: /error 28: full/ });
    }
    assert.equal(server.connections, 1);
  });

  test('a server that is about to end is left with DISC, and what it did not do is asked of the next', async (t) => {
    let shutting = true;
    const server = await ScriptedServer.start(t, {
      request: ({ type, cookie, offset, length }) => {
        if (type !== 0) return type === 2 ? undefined : simpleReply(cookie);
        if (!shutting) return data(offset, length, { cookie, done: true });
        shutting = false;
        return chunk(0x8001, Buffer.concat([u32(108), Buffer.from([0, 0])]), { cookie });
      },
    });
    const image = await NbdImage.open(server.url, { connections: 1, reconnectMs: 5000 });
    assert.ok((await read(image, 0, 4096)).equals(pattern(0, 4096)));
    assert.deepEqual(
      server.requests.map(({ type }) => type),
      [0, 2, 0],
    );
    assert.equal(server.connections, 2);
    await image.close();
  });

  test('a write that a server about to end did not take is not sent to it later, when its memory is in other use', async (t) => {
    const { server, image } = await opened(t, {
      request: ({ cookie, length }, socket) => {
        if (length !== 4096) return simpleReply(cookie);
        socket.pause();
        setTimeout(() => {
          socket.write(chunk(0x8001, Buffer.concat([u32(108), Buffer.from([0, 0])]), { cookie }));
          setTimeout(() => socket.resume(), 50);
        }, 50);
        return undefined;
      },
    });
    const long = Buffer.alloc(SCRIPTED_SIZE - 4096, 1);
    const results = await Promise.allSettled([
      image.writev(0, IoVec.of(Buffer.alloc(4096))),
      image.writev(4096, IoVec.of(long)),
    ]);
    assert.deepEqual(
      results.map(({ status }) => status),
      ['rejected', 'rejected'],
    );
    long.fill(2);
    while (server.sockets.size > 0) await new Promise((resolve) => setTimeout(resolve, 10));
    for (const { length, payload } of server.requests) assert.ok(length === 4096 || !payload.includes(2));
  });

  const status = (script: (request: SeenRequest) => Buffer, extended = false): Script => ({
    extended,
    request: (request) => (request.type === 7 ? script(request) : undefined),
    ...(extended ? { option: (o: number) => (o === 11 ? optionReply(11, 1) : honestOption(o)) } : {}),
  });
  for (const [what, answer, extended] of [
    ['no descriptor', (c: number) => chunk(5, u32(1), { cookie: c })],
    ['a descriptor of no length', (c: number) => chunk(5, Buffer.concat([u32(1), u32(0), u32(3)]), { cookie: c })],
    ['half a descriptor', (c: number) => chunk(5, Buffer.concat([u32(1), u32(1)]), { cookie: c })],
    [
      'one context twice',
      (c: number) =>
        Buffer.concat(
          [1, 2].map((i) => chunk(5, Buffer.concat([u32(1), u32(512), u32(0)]), { cookie: c, done: i === 2 })),
        ),
    ],
    ['another context only', (c: number) => chunk(5, Buffer.concat([u32(9), u32(512), u32(0)]), { cookie: c })],
    ['success and nothing else', (c: number) => simpleReply(c)],
    [
      'descriptors of 64 bits where 32 were agreed',
      (c: number) => chunk(6, Buffer.concat([u32(1), u32(1), u64(512), u64(0)]), { cookie: c }),
    ],
    [
      'descriptors of 32 bits where 64 were agreed',
      (c: number) => extendedChunk(5, Buffer.concat([u32(1), u32(512), u32(0)]), { cookie: c }),
      true,
    ],
    [
      'a count that lies',
      (c: number) => extendedChunk(6, Buffer.concat([u32(1), u32(2), u64(512), u64(0)]), { cookie: c }),
      true,
    ],
  ] as readonly (readonly [string, (cookie: number) => Buffer, boolean?])[]) {
    test(`block status: ${what} is refused`, async (t) => {
      const { image } = await opened(
        t,
        status(({ cookie }) => answer(cookie), extended),
      );
      await assert.rejects(image.map(0, 4096, new ExtentBuffer()), { code: 'PROTOCOL' });
    });
  }

  test('block status that says more than was asked for is cut', async (t) => {
    const { image } = await opened(
      t,
      status(({ cookie }) => chunk(5, Buffer.concat([u32(1), u32(1000), u32(3), u32(0xffffffff), u32(0)]), { cookie })),
    );
    const extents = new ExtentBuffer();
    await image.map(0, 4096, extents);
    assert.deepEqual([...extents.lengths.subarray(0, 2)], [1000, 3096]);
  });

  test('extended requests say that writes have a payload, and lengths have 64 bits', async (t) => {
    const { image, server } = await opened(t, {
      extended: true,
      option: (o) => (o === 11 ? optionReply(11, 1) : honestOption(o)),
      request: ({ type, cookie }) => (type === 2 ? undefined : extendedChunk(0, NOTHING, { cookie })),
    });
    await image.writev(10, IoVec.of(pattern(10, 100)));
    await image.flush();
    const [write, flush] = server.requests;
    assert.deepEqual([write?.flags, write?.length, flush?.flags, flush?.length, flush?.offset], [0x20, 100, 0, 0, 0]);
    assert.ok(write?.payload.equals(pattern(10, 100)));
  });
});

test('a request that every server dies of, or that none answers, fails in the end', async (t) => {
  const deadly = await ScriptedServer.start(t, {
    request: (_request, socket) => {
      socket.destroy();
      return undefined;
    },
  });
  const silent = await ScriptedServer.start(t, {});
  const options = { connections: 1, reconnectMs: 300, requestTimeoutMs: 200 };
  for (const [server, code, least] of [
    [deadly, 'DISCONNECTED', 3],
    [silent, 'TIMEOUT', 2],
  ] as const) {
    const image = await NbdImage.open(server.url, options);
    await assert.rejects(read(image, 0, 512), { code, path: server.url });
    assert.ok(server.connections >= least && server.connections < 12, `${server.connections} connections`);
    await image.close();
  }
});

test('commands that the server does not offer are not sent: no flush, no zeroes', async (t) => {
  const { image, server } = await opened(t, {
    option: (o) =>
      o === GO
        ? Buffer.concat([optionReply(GO, 3, exportInfo(SCRIPTED_SIZE, 1)), optionReply(GO, 1)])
        : honestOption(o),
    request: ({ type, cookie }) => (type === 2 ? undefined : simpleReply(cookie)),
  });
  await image.writeZeroes(0, 8192, true);
  await image.discard(0, 8192);
  await image.flush();
  await image.close();
  while (server.sockets.size > 0) await new Promise((resolve) => setImmediate(resolve));
  assert.deepEqual(
    server.requests.map(({ type, length }) => [type, length]),
    [
      [1, 8192],
      [2, 0],
    ],
  );
});
