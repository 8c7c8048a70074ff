import { Worker } from 'node:worker_threads';

/** Starts a file of this folder in a thread. @param name without its extension: that is .js in the package, .ts in a checkout */
export function startWorker(name: string, data: unknown): Worker {
  const extension = import.meta.url.replace(/\?.*$/, '').slice(-3);
  const file = new URL(`./${name}${extension}`, import.meta.url);
  if (extension !== '.ts') return new Worker(file, { workerData: data });
  // Threads do not inherit the loader that runs the sources of a checkout.
  const loader = import.meta.resolve('tsx/esm/api');
  const script = `import(${JSON.stringify(loader)}).then(({ register }) => (register(), import(${JSON.stringify(file.href)})))`;
  return new Worker(script, { eval: true, workerData: data });
}
