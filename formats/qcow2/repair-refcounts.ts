export async function repairRefcounts(_parts: unknown): Promise<void> {}
